#!/bin/sh
# Sets up an environment for the TPU of this machine, or repairs one, and lists the
# devices that TensorFlow sees:
#
#   scripts/install_tpu.sh VENV              sets it up
#   scripts/install_tpu.sh --try-next VENV   installs the next libtpu of the ladder;
#                                            scripts/doctor.sh calls this
#
# VENV/.tpu says what the environment is for; VENV/.base, that its installation was
# finished. So the first outlives a stopped installation and a newer setup.py.
# VENV/.libtpu holds the version of libtpu, which later installations keep.
set -eu
cd "$(dirname "$0")/.."

# TensorFlow 2.20 loads all of these. Its wheel asks for 0.0.14 or newer, so that is the
# first; which chips and machine images each version serves is known only there.
LADDER="0.0.14 0.0.17 0.0.21 0.0.24 0.0.31"
IMPORTS="import tf_keras; from transformers import TFGPT2LMHeadModel"

export TF_CPP_MIN_LOG_LEVEL="${TF_CPP_MIN_LOG_LEVEL:-2}"
# Without a TPU, libtpu would ask a metadata server for it, for minutes.
skip_query=${TPU_SKIP_MDS_QUERY:-1}
for file in /dev/accel* /dev/vfio/*; do
  [ ! -e "$file" ] || skip_query=${TPU_SKIP_MDS_QUERY:-}
done
[ -z "$skip_query" ] || export TPU_SKIP_MDS_QUERY="$skip_query"

# Prints the devices; fails where TensorFlow, as it is installed, has no TPU system.
# Without the variable, there is none while another program uses the TPU.
list_devices() {
  ALLOW_MULTIPLE_LIBTPU_LOAD=1 "$venv/bin/python" - <<'PYTHON'
import tensorflow as tf

devices = tf.config.list_physical_devices()
print(*devices, sep="\n")
raise SystemExit("TPU_SYSTEM" not in [device.device_type for device in devices])
PYTHON
}

# Installs the first version after VENV/.libtpu that there is for this Python. Ends with
# exit code 1, and the first version of all, where none is left.
try_next() {
  current=$(cat "$venv/.libtpu" 2>/dev/null || true)
  case " $LADDER " in
    *" $current "*) left=${LADDER#*"$current"} ;;
    *) left=$LADDER ;;
  esac
  for version in $left; do
    if "$venv/bin/python" -m pip install --quiet --no-deps "libtpu==$version"; then
      echo "$version" >"$venv/.libtpu"
      echo "installed libtpu $version" >&2
      exit 0
    fi
    echo "libtpu $version: not available for this Python" >&2
  done
  first=${LADDER%% *}
  "$venv/bin/python" -m pip install --quiet --no-deps "libtpu==$first"
  echo "$first" >"$venv/.libtpu"
  exit 1
}

if [ "$1" = --try-next ]; then
  venv=$2
  try_next
fi
venv=$1
mkdir -p "$venv"
touch "$venv/.tpu"
# The TPU's compiler needs another libtpu, in an environment of its own.
rm -f "$venv"/.*plan
if "$venv/bin/python" -m pip show --quiet tensorflow 2>/dev/null ||
  ! "$venv/bin/python" -c "$IMPORTS" >/dev/null 2>&1; then
  # There are two TensorFlows, or one that cannot be imported: install again.
  rm -f "$venv/.base"
  [ ! -x "$venv/bin/python" ] ||
    "$venv/bin/python" -m pip uninstall --quiet --yes tensorflow tensorflow-tpu
fi
if [ ! -e "$venv/.base" ] || [ setup.py -nt "$venv/.base" ]; then
  [ -e "$venv/.libtpu" ] || echo "${LADDER%% *}" >"$venv/.libtpu"
  sh scripts/install.sh "$venv"
  touch "$venv/.base"
fi
list_devices
cat <<'TEXT'
TPU_SYSTEM in this list proves that the installation is right, and not that a TPU is
here or answers. `make doctor TPU=local` asks it: it lets every replica compute.
TEXT
