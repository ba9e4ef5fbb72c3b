"""Keeps the chatter of TensorFlow, XLA and CUDA off the terminal.

`set_environment` sets what these libraries read when they are imported. A few lines
obey no setting: `filter_stderr` drops those and passes everything else on. The filter
is this file, run as a program: a separate process still passes on the last words of a
program that crashes.
"""

import glob
import os
import re
import subprocess
import sys

_DEFAULTS = {
    "TF_CPP_MIN_LOG_LEVEL": "2",  # errors of C++, not its warnings and information
    "TRANSFORMERS_VERBOSITY": "error",
    # Faster starts: TensorFlow would also import Keras 3, and transformers PyTorch.
    "TF_USE_LEGACY_KERAS": "1",
    "USE_TORCH": "0",
    # Each open shard of a bucket would hold 64 MiB; `tfrecords/reader.py` has buffers.
    "GCS_READ_CACHE_BLOCK_SIZE_MB": "0",
}
_CHATTER = re.compile(
    rb"WARNING: All log messages before absl::InitializeLog\(\)"
    # The C++ library absl, which does not read TF_CPP_MIN_LOG_LEVEL.
    rb"|[IW]\d{4} \d\d:\d\d:\d{10}\."
    # A machine without NVIDIA's driver, or with the driver and no GPU.
    rb"|.*failed call to cuInit: .*(UNKNOWN ERROR \(303\)|CUDA_ERROR_NO_DEVICE)"
    rb"|.*Unable to register cu(BLAS|DNN|FFT) (factory|plugin)"
)


def set_environment() -> None:
    """Sets the environment's defaults; must run before TensorFlow is imported."""
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    # A notebook's kernel exports a backend that only its own environment has. Programs
    # draw into files.
    os.environ.pop("MPLBACKEND", None)
    has_tpu = glob.glob("/dev/accel*") or glob.glob("/dev/vfio/*")
    if not has_tpu and "TPU_NAME" not in os.environ:
        # libtpu would ask a metadata server for the TPU, for minutes.
        os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")


def filter_stderr() -> None:
    """Sends what C++ writes to file descriptor 2 through the filter.

    Python's own `sys.stderr` goes to the terminal directly. A TF_CPP_MIN_LOG_LEVEL
    below 2 asks for all lines: nothing is filtered then.
    """
    if os.environ.get("TF_CPP_MIN_LOG_LEVEL") in ("0", "1"):
        return
    sys.stderr.flush()
    terminal = os.dup(2)
    end, start = os.pipe()
    # In a session of its own, Ctrl-C and signals to the group do not reach it. It ends
    # with the last process that holds the start of the pipe.
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", __file__],
        stdin=end,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    process.returncode = 0  # no warning that it still runs when Python ends
    os.dup2(start, 2)
    os.close(start)
    os.close(end)
    sys.stderr = os.fdopen(
        terminal,
        "w",
        buffering=1,
        encoding=sys.stderr.encoding,
        errors="backslashreplace",
    )
    from absl import logging  # not at the top: the filter process does not have it

    logging.get_absl_handler().python_handler.setStream(sys.stderr)


def main() -> None:
    """Copies standard input to standard error, line by line, without the chatter."""
    for line in sys.stdin.buffer:
        if not _CHATTER.match(line):
            sys.stderr.buffer.write(line)
            sys.stderr.buffer.flush()


if __name__ == "__main__":
    main()
