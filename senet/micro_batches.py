"""A batch in pieces: each device takes its part of a batch in micro-batches, so that memory is
needed for one of them only."""

import contextlib

from senet.compat import tf
from senet.errors import HyperparameterError

PIECE = "piece"  # the graph collection with the number of the piece whose tower is being built


def sum_over_micro_batches(tower, images, labels, size, like):
    """Return the sum of `tower(images, labels)` over this replica's part of the batch, taken in
    micro-batches of at most `size` images, one after the other; with a size of 0, all at once.

    `tower` returns a nest of tensors; `like` is a nest of variables with the same shapes and types.
    All variables have to exist already: a loop cannot make any."""
    replica = tf.distribute.get_replica_context()
    replicas, batch = replica.num_replicas_in_sync, tf.shape(images)[0]
    count = pieces_of_replica(batch, replicas, size)
    first = replica.replica_id_in_sync_group * count

    def piece(number):
        # Split the batch evenly across the pieces of all replicas.
        start, stop = (batch * n // (count * replicas) for n in (number, number + 1))
        with _building(number):
            return tower(images[start:stop], labels[start:stop])

    if not size:
        return piece(first)
    zeros = tf.nest.map_structure(lambda v: tf.zeros(v.shape, v.dtype.base_dtype), like)
    _, sums = tf.while_loop(
        lambda number, sums: number < first + count,
        lambda number, sums: (number + 1, tf.nest.map_structure(tf.add, sums, piece(number))),
        (first, zeros),
        parallel_iterations=1,
        back_prop=False,
        name="micro_batches",
    )
    return sums


def pieces_of_replica(batch, replicas, size):
    """Return how many micro-batches each replica takes its part of a batch in."""
    return -(-batch // (replicas * size)) if size else 1


def check_pieces(images, steps, hyperparameters):
    """Raise HyperparameterError if a batch would leave fewer images to a device or a micro-batch
    than the network needs, `hyperparameters.SMALLEST_PIECE`. An epoch has `images` in `steps`."""
    hp = hyperparameters
    replicas = tf.distribute.get_strategy().num_replicas_in_sync
    # The sizes of the batches of an epoch, and that of the batch at its end.
    for batch in images // steps, -(-images // steps), min(hp.batch_size, images):
        pieces = replicas * pieces_of_replica(batch, replicas, hp.micro_batch_size)
        if batch // pieces < hp.SMALLEST_PIECE:
            raise HyperparameterError(
                f"--batch_size={hp.batch_size} with --micro_batch_size={hp.micro_batch_size} would "
                f"split a batch of {batch} images into {pieces}, and batch norm needs at least "
                f"{hp.SMALLEST_PIECE} in each; give a larger --micro_batch_size or --batch_size"
            )


@contextlib.contextmanager
def _building(number):
    graph = tf.get_default_graph()
    graph.add_to_collection(PIECE, tf.cast(number, tf.int64))
    yield
    graph.clear_collection(PIECE)


def piece_number():
    """Return the number, int64, of the piece whose tower is being built; 0 outside of one."""
    return (tf.get_collection(PIECE) or [0])[0]
