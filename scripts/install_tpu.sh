#!/bin/sh
# Sets up an environment for the TPU of this machine, or repairs one, and lists the
# devices that TensorFlow sees:  scripts/install_tpu.sh VENV
#
# VENV/.tpu says what the environment is for; VENV/.base, that its installation was
# finished. So the first outlives a stopped installation and a newer setup.py.
set -eu
cd "$(dirname "$0")/.."
venv=$1

export TF_CPP_MIN_LOG_LEVEL="${TF_CPP_MIN_LOG_LEVEL:-2}"
if ! ls /dev/accel* /dev/vfio/* >/dev/null 2>&1; then
  # Without a TPU, libtpu would ask a metadata server for it, for minutes.
  export TPU_SKIP_MDS_QUERY="${TPU_SKIP_MDS_QUERY:-1}"
fi

# Prints the devices; fails where TensorFlow, as it is installed, has no TPU system.
list_devices() {
  "$venv/bin/python" - <<'PYTHON'
import tensorflow as tf
import tf_keras
from transformers import TFGPT2LMHeadModel

devices = tf.config.list_physical_devices()
print(*devices, sep="\n")
raise SystemExit("TPU_SYSTEM" not in [device.device_type for device in devices])
PYTHON
}

mkdir -p "$venv"
touch "$venv/.tpu"
# The TPU's compiler needs another libtpu, in an environment of its own.
rm -f "$venv"/.*plan
if "$venv/bin/python" -m pip show --quiet tensorflow 2>/dev/null ||
  ! list_devices >/dev/null 2>&1; then
  rm -f "$venv/.base" # two TensorFlows, or one that cannot be imported: install again
fi
if [ ! -e "$venv/.base" ] || [ setup.py -nt "$venv/.base" ]; then
  sh scripts/install.sh "$venv"
  touch "$venv/.base"
fi
list_devices
