"""Exact sums and a checksum of a set of images, computed in one pass and with little memory."""

import zlib
from typing import NamedTuple

import numpy as np

CHUNK = 2**22  # bytes of images that are summed at a time


class ImageSums(NamedTuple):
    """Sums over images, uint8 [N, height, width, 3], and a checksum that depends on their order."""

    sums: list  # of 3 ints: the sum of each channel's values
    squares: list  # of 3 ints: the sum of their squares
    checksum: int  # CRC-32

    def channel_statistics(self, pixels):
        """Return the mean and standard deviation of each channel, in pixel values, as two float32
        arrays [3]; `pixels` is the total number of pixels of the images."""
        mean, square = np.divide(self.sums, pixels), np.divide(self.squares, pixels)
        std = np.sqrt(square - np.square(mean))
        return mean.astype(np.float32), np.maximum(std, 1).astype(np.float32)


def sum_images(images):
    """Return the ImageSums of `images`, uint8 [N, height, width, 3]."""
    sums, squares, checksum = np.zeros(3, np.int64), np.zeros(3, np.int64), 0
    rows = max(1, CHUNK // images[0].nbytes)
    for first in range(0, len(images), rows):
        chunk = np.ascontiguousarray(images[first : first + rows])
        checksum = zlib.crc32(chunk.data, checksum)
        for number in range(3):
            channel = chunk[..., number]
            sums[number] += channel.sum(dtype=np.int64)
            squares[number] += np.square(channel, dtype=np.uint16).sum(dtype=np.int64)
    return ImageSums(sums.tolist(), squares.tolist(), checksum)
