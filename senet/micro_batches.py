"""A training step in pieces, so that memory is needed for one piece only."""

from senet.compat import tf

MICRO_BATCH = "micro_batch"  # the graph collection with the number of the piece being built


def sum_over_micro_batches(tower, images, labels, size, like):
    """The sum of `tower(images, labels)` over micro-batches of at most `size` pictures, one after
    the other; with a size of 0, of the whole batch at once.

    `tower` gives a nest of tensors, `like` the same nest of variables of the same shapes and types.
    All variables have to be there already: a loop cannot make any."""
    if not size:
        return tower(images, labels)
    batch = tf.shape(images)[0]
    count = (batch + size - 1) // size

    def add_one(number, sums):
        part = slice(batch * number // count, batch * (number + 1) // count)
        tf.add_to_collection(MICRO_BATCH, tf.cast(number, tf.int64))
        more = tower(images[part], labels[part])
        tf.get_default_graph().clear_collection(MICRO_BATCH)
        return number + 1, tf.nest.map_structure(tf.add, sums, more)

    zeros = tf.nest.map_structure(lambda v: tf.zeros(v.shape, v.dtype.base_dtype), like)
    _, sums = tf.while_loop(
        lambda number, sums: number < count,
        add_one,
        (0, zeros),
        parallel_iterations=1,
        back_prop=False,
        name="micro_batches",
    )
    return sums


def micro_batch_number():
    """The number of the micro-batch whose tower is being built, int64: 0 if there is one only."""
    return tf.get_collection(MICRO_BATCH)[0] if tf.get_collection(MICRO_BATCH) else 0
