"""Finds this machine's TPU, and initializes the system of a local or remote one."""

import os
import pathlib

import tensorflow as tf

_LIBTPU_LOCK = "/tmp/libtpu_lockfile"


def has_device() -> bool:
    """Returns whether this is a TPU VM, such as Cloud's or Colab's."""
    # The first up to v4, the second from v5e on.
    return any(map(os.path.exists, ("/dev/accel0", "/dev/vfio/0")))


def process_with_libtpu() -> str:
    """Returns the id of the process that holds libtpu's lock; "" where none does.

    In any other process, TensorFlow sees no TPU.
    """
    try:
        inode = os.stat(_LIBTPU_LOCK).st_ino
        locks = pathlib.Path("/proc/locks").read_text()
    except OSError:
        return ""
    for line in locks.splitlines():
        *_, process, file, _, _ = line.split()
        if file.endswith(f":{inode}"):
            return process
    return ""


def initialize(resolver: tf.distribute.cluster_resolver.TPUClusterResolver) -> None:
    """Initializes the TPU that a resolver is connected to."""
    if len(resolver.cluster_spec().as_dict().get("worker", ())) > 1:
        _initialize_hosts(resolver)
    else:
        tf.tpu.experimental.initialize_tpu_system(resolver)


def _initialize_hosts(
    resolver: tf.distribute.cluster_resolver.TPUClusterResolver,
) -> None:
    """Initializes a TPU of several hosts, which TensorFlow 2.20's own function cannot.

    That function's graph is cut at the edges between hosts, and the ends of an edge are
    named by its source and a number. Each remote host cuts its part again, since 2.20
    registers `_HostSend` for a TPU's host without saying that its input is in host
    memory. It counts from 1 again: "Node 'disconnect_tpu_host/_2/_1' is not unique". An
    operation that all hosts wait for takes the first numbers in the whole graph.
    """

    @tf.function(autograph=False)
    def initialize() -> tf.Tensor:
        with tf.device("/job:worker/task:0/device:CPU:0"):
            operation = tf.timestamp()
        with tf.control_dependencies([operation]):
            return tf.tpu.experimental.initialize_tpu_system(resolver)

    resolver.set_tpu_topology(initialize().numpy())
