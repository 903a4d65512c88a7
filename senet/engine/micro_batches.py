"""Process each device's part of a batch in micro-batches, with memory for only one at a time."""

import contextlib
import functools

from senet.engine.compat import tf
from senet.engine.errors import HyperparameterError

# Graph collections of the micro-batch whose graph is being built:
NUMBER = "micro_batch_number"
USES = "uses"  # the names for which `earlier_uses` was called


def sum_over_micro_batches(compute, batch, size, shaped_like):
    """Return the sum of `compute(part)` over the micro-batches of this replica's part of `batch`, a
    nest of tensors with one row per image. They have at most `size` images and are processed one
    after the other; if `size` is 0, the replica's part is not split.

    `compute` returns a nest of tensors; `shaped_like` is a nest of variables with the same shapes
    and types. All variables that `compute` uses must exist, since a loop cannot create any."""
    replica = tf.distribute.get_replica_context()
    replicas = replica.num_replicas_in_sync
    images = tf.shape(tf.nest.flatten(batch)[0])[0]
    count = micro_batches_per_replica(images, replicas, size)
    first = replica.replica_id_in_sync_group * count
    wide = functools.partial(tf.cast, dtype=tf.int64)  # the product below can exceed int32

    def micro_batch(number):
        # Split the batch evenly across the micro-batches of all replicas.
        start, stop = (
            wide(images) * wide(n) // wide(count * replicas) for n in (number, number + 1)
        )
        with _building(number):
            return compute(tf.nest.map_structure(lambda part: part[start:stop], batch))

    def add(number, sums):
        return number + 1, tf.nest.map_structure(tf.add, sums, micro_batch(number))

    if not size:
        return micro_batch(first)
    zeros = tf.nest.map_structure(lambda v: tf.zeros(v.shape, v.dtype.base_dtype), shaped_like)
    _, sums = tf.while_loop(
        lambda number, sums: number < first + count,
        add,
        (first, zeros),
        parallel_iterations=1,
        back_prop=False,
        name="micro_batches",
    )
    return sums


def micro_batches_per_replica(batch, replicas, size):
    """Return the number of micro-batches in each replica's part of a batch."""
    return -(-batch // (replicas * size)) if size else 1


def check_micro_batches(images, steps, hyperparameters, replicas=1):
    """Raise HyperparameterError if a micro-batch on one of the `replicas` would have fewer images
    than `hyperparameters.MIN_MICRO_BATCH`. An epoch has `images` images in `steps` steps."""
    hp = hyperparameters
    # The batch sizes of an epoch, and that of the batch fed at its end.
    for batch in images // steps, -(-images // steps), min(hp.batch_size, images):
        count = replicas * micro_batches_per_replica(batch, replicas, hp.micro_batch_size)
        if batch // count < hp.MIN_MICRO_BATCH:
            split, needed = (f"{n} image{'s' * (n != 1)}" for n in (batch, hp.MIN_MICRO_BATCH))
            raise HyperparameterError(
                f"--batch_size={hp.batch_size} with --micro_batch_size={hp.micro_batch_size} would "
                f"split a batch of {split} into {count} micro-batches, but batch norm needs at "
                f"least {needed} in each; use a larger --micro_batch_size or --batch_size, or "
                f"fewer devices"
            )


@contextlib.contextmanager
def _building(number):
    graph = tf.get_default_graph()
    graph.add_to_collection(NUMBER, tf.cast(number, tf.int64))
    graph.clear_collection(USES)
    yield
    graph.clear_collection(NUMBER)
    graph.clear_collection(USES)


def earlier_uses(name):
    """Return how often this was called before with `name` while the graph of the current
    micro-batch was built."""
    uses = tf.get_collection_ref(USES)
    uses.append(name)
    return uses.count(name) - 1


def micro_batch_number():
    """Return the number, int64, of the micro-batch whose graph is being built; 0 outside one."""
    return (tf.get_collection(NUMBER) or [0])[0]
