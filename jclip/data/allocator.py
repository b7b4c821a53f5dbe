"""Memory of pictures that a process keeps once it is freed, instead of asking the system for it anew."""

import numpy as np


def keep_freed_memory() -> None:
    """Lets this process use the memory of one picture for the next, where it runs on glibc; elsewhere it does nothing.

    glibc maps large blocks one by one and gives them back when they are freed, so that the kernel clears every page anew: 400 to
    600 pages a picture of 640 x 480, a third of the time of decoding and resizing it. It stops so below the size of the largest
    block that it has seen freed, if that has at most 32 MB, and then keeps up to twice as much (mallopt(3), "dynamic mmap
    threshold"). So one is freed here; its pages are never touched.
    """
    np.empty(31 << 20, np.uint8)
