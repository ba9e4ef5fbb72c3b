#!/bin/sh
# Runs trainer.doctor:  scripts/doctor.sh VENV [its flags]
#
# Where this machine has a TPU that does not answer, it tries other versions of libtpu
# (the ladder of install_tpu.sh), and keeps the first with which the TPU answers.
set -eu
cd "$(dirname "$0")/.."
venv=$1
shift
logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT

# Sets `code` to the exit code; the output goes where it always goes, and stderr into
# a file, too. A libtpu that does not suit may wait for ever.
run_doctor() {
  {
    {
      code=0
      timeout --foreground "${DOCTOR_SECONDS:-300}" "$venv/bin/python" -m trainer.doctor "$@" ||
        code=$?
      echo "$code" >"$logs/code"
    } 2>&1 >&3 | tee "$logs/stderr" >&2
  } 3>&1
  code=$(cat "$logs/code")
}

has_tpu() {
  for file in ${TPU_DEVICE_FILES:-/dev/accel* /dev/vfio/*}; do
    [ ! -e "$file" ] || return 0
  done
  return 1
}

# Whether another libtpu may help: an error of the TPU, an abort or a time-out, in an
# environment for TPUs, on a machine that has one which no other program uses.
should_try_next() {
  for flag; do
    case $flag in --tpu=local) ;; --tpu=?*) return 1 ;; esac
  done
  [ -e "$venv/.tpu" ] && has_tpu || return 1
  ! grep -q "already in use" "$logs/stderr" || return 1
  case $code in 124 | 134 | 139) return 0 ;; esac # timeout, SIGABRT, SIGSEGV
  grep -q "must name a TPU that can be reached" "$logs/stderr"
}

tried=
while run_doctor "$@"; [ "$code" != 0 ] && should_try_next "$@"; do
  version=$(cat "$venv/.libtpu" 2>/dev/null || echo "as it was installed")
  tried="$tried${tried:+, }$version"
  echo "The TPU does not answer with libtpu $version. Trying the next." >&2
  if ! sh scripts/install_tpu.sh --try-next "$venv"; then
    cat >&2 <<TEXT
error: The TPU of this machine must answer. It did not with any libtpu that was tried:
$tried. Installed again: $(cat "$venv/.libtpu"). Restart the machine, or compare its
image with docs/cloud_tpu.md.
TEXT
    exit "$code"
  fi
done
if [ "$code" = 0 ] && [ -n "$tried" ]; then
  echo "The TPU answers with libtpu $(cat "$venv/.libtpu"), which is kept. It did not" \
    "with $tried." >&2
fi
exit "$code"
