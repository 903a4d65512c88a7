"""Muon: momentum for convolutions, with an orthogonal update."""

import math

from senet.engine.compat import tf

# Coefficients of the odd polynomial a x + b x^3 + c x^5. Applied a few times, it maps singular
# values from 0.1 to 1 close to 1 (Jordan et al., "Muon: An optimizer for hidden layers", 2024).
POLYNOMIAL = 3.4445, -4.7750, 2.0315


class Muon(tf.train.MomentumOptimizer):
    """Update the filters of convolutions by Muon, and all other variables by SGD with Nesterov
    momentum.

    Muon replaces the update of a layer by the nearest orthogonal matrix, so that a step changes all
    directions equally, also those with small gradients. The filters of a layer are first scaled to
    a Frobenius norm of sqrt(filters), as in Jordan's airbench94_muon: their learning rate, `ratio`
    times `rate`, is therefore relative to the weights, and they need no weight decay. Products are
    computed in `dtype`."""

    def __init__(self, rate, momentum, ratio, filter_momentum, *, dtype, name="Muon"):
        super().__init__(rate, momentum, name=name, use_nesterov=True)
        self.ratio = ratio
        self.filter_momentum = filter_momentum
        self.dtype = dtype

    def _resource_apply_dense(self, grad, var):
        if var.shape.rank != 4:
            return super()._resource_apply_dense(grad, var)
        slot = self.get_slot(var, "momentum")
        with tf.name_scope("muon"):
            sums = self.filter_momentum * slot + grad
            update = grad + self.filter_momentum * sums
            filters = var.shape[-1].value
            matrix = tf.reshape(update, [-1, filters])
            step = tf.reshape(orthogonalised(matrix, self.dtype), var.shape)
            rate = self.ratio * self._learning_rate_tensor
            weights = var * (math.sqrt(filters) / tf.norm(var))
            return tf.group(slot.assign(sums), var.assign(weights - rate * step))


def orthogonalised(matrix, dtype, iterations=3):
    """Return an approximation of the orthogonal matrix nearest to `matrix`, float32 [rows,
    columns]: its singular values are replaced by values near 1. Products are computed in
    `dtype`."""
    a, b, c = POLYNOMIAL
    rows, columns = matrix.shape.as_list()
    x = tf.cast(matrix / (tf.norm(matrix) + 1e-7), dtype)
    for _ in range(iterations):
        # Multiply by the smaller of the two Gram matrices.
        gram = tf.matmul(x, x, transpose_a=rows > columns, transpose_b=rows <= columns)
        factor = b * gram + c * tf.matmul(gram, gram)
        x = a * x + (tf.matmul(x, factor) if rows > columns else tf.matmul(factor, x))
    return tf.cast(x, tf.float32)
