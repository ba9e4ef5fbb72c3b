#!/bin/sh
# Sets up an environment with this package, editable, or adds extras to it.
#
#   scripts/install.sh VENV            creates VENV, installs the base
#   scripts/install.sh VENV dev,plan   adds extras of setup.py
#
# Reads PYTHON (the interpreter that creates VENV), CONSTRAINTS (a pip constraints file)
# and VENV/.tpu and .libtpu, which mark an environment for TPUs; see install_tpu.sh.
set -eu
cd "$(dirname "$0")/.."
venv=$1
extras=${2:-}
python=${PYTHON:-python3}

# setuptools warns of every editable installation.
pip_install() {
  PYTHONWARNINGS=ignore "$venv/bin/python" -m pip install --quiet "$@" ${CONSTRAINTS:+--constraint="$CONSTRAINTS"}
}

if [ -z "$extras" ]; then
  "$python" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' || {
    echo "error: Python 3.10 to 3.13 is needed: make PYTHON=python3.11 ..." >&2
    exit 2
  }
  "$python" -m venv "$venv"
  # With the pip of Python 3.10, finding versions that fit together takes for ever.
  if "$venv/bin/python" -c 'import sys; sys.exit(sys.version_info >= (3, 11))'; then
    pip_install --upgrade pip
  fi
fi
case ",$extras," in *,plan,*)
  "$venv/bin/python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "error: The TPU's compiler needs Python 3.11 or newer:" \
      "make plan VENV=.venv-plan PYTHON=python3.11 ..." >&2
    exit 2
  } ;;
esac
echo "installing ${extras:-the base} into $venv"
if [ ! -e "$venv/.tpu" ]; then
  pip_install --editable ".${extras:+[$extras]}"
  exit
fi

# The wheels `tensorflow`, which the base and tf-keras require, and `tensorflow-tpu` hold
# the same files: the one installed last wins, and removing one removes files of the
# other. So there is only the second. While pip installs, an entry without files in its
# list of packages stands for the first. --no-compile: of thousands of modules, what is
# imported is compiled then.
if "$venv/bin/python" -m pip show --quiet tensorflow 2>/dev/null; then
  "$venv/bin/python" -m pip uninstall --quiet --yes tensorflow tensorflow-tpu
fi
entry=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
version=$(sed -n 's/.*"tensorflow-tpu==\(.*\)".*/\1/p' setup.py)
entry=$entry/tensorflow-$version.dist-info
trap 'rm -rf "$entry"' EXIT
mkdir -p "$entry"
printf 'Metadata-Version: 2.1\nName: tensorflow\nVersion: %s\n' "$version" >"$entry/METADATA"
# With this, pip can remove an entry that a stopped installation has left.
printf '%s/METADATA,,\n%s/RECORD,,\n' "${entry##*/}" "${entry##*/}" >"$entry/RECORD"
libtpu=$(cat "$venv/.libtpu" 2>/dev/null || true)
pip_install --no-compile --editable ".[tpu${extras:+,$extras}]" ${libtpu:+"libtpu==$libtpu"}
# transformers looks for TensorFlow by the name of its wheel, and does not know this one.
"$venv/bin/python" - <<'PYTHON'
import pathlib
import sysconfig

line = 'import os; os.environ.setdefault("FORCE_TF_AVAILABLE", "1")\n'
pathlib.Path(sysconfig.get_path("purelib"), "tensorflow_tpu.pth").write_text(line)
PYTHON
