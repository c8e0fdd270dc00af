# shellcheck shell=bash
# Sees to what the build needs beyond Rust and Python 3: a C++ compiler, cmake and libclang.
#
# To be sourced by a script that has made the repository its working directory. As root on Debian,
# what is missing is installed with apt; otherwise cmake and libclang come from Python wheels into
# .tools/, which belongs to this clone. Asks no questions, and takes no time when all is there.

readonly tools=$PWD/.tools/venv

fail() {
    printf '%s\n' "$@" >&2
    exit 1
}

has() { command -v "$1" >/dev/null; }

# The library itself; libclang-cpp, a different one, often lies beside it.
has_libclang() {
    [[ -n ${LIBCLANG_PATH-} ]] && return
    # Not grep -q, which would end the pipe early and fail the whole of it.
    { ldconfig -p; ls /usr/lib/llvm-*/lib; } 2>/dev/null | grep -E '\blibclang(-[0-9.]+)?\.so' >/dev/null
}

# Its own copies of stddef.h and the like, which Debian puts into a package apart.
has_clang_headers() {
    compgen -G '/usr/lib/llvm-*/lib/clang/*/include/stddef.h' >/dev/null ||
        compgen -G '/usr/lib*/clang/*/include/stddef.h' >/dev/null
}

can_make_venv() { python3 -c 'import ensurepip, venv' 2>/dev/null; }

install_with_apt() {
    local missing=()
    has c++ || missing+=(g++)
    has make || missing+=(make)
    has cmake || missing+=(cmake)
    { has_libclang && has_clang_headers; } || missing+=(libclang-dev)
    can_make_venv || missing+=(python3-venv)
    ((${#missing[@]})) || return 0
    echo "installing with apt: ${missing[*]}" >&2
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq && apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

make_venv() {
    # A venv does not survive being moved, or the removal of its Python.
    "$tools/bin/python" -m pip --version >/dev/null 2>&1 && return
    can_make_venv || fail \
        'This Python cannot make virtual environments. Install the package python3-venv, or run' \
        'this command as root once so that it can do so.'
    rm -rf "$tools"
    python3 -m venv "$tools"
}

install_from_wheels() {
    echo 'installing cmake and libclang into .tools/' >&2
    "$tools/bin/python" -m pip install --quiet --disable-pip-version-check \
        --requirement scripts/build-requirements.txt
}

# rustup puts cargo here, but only a new login shell has it on the PATH.
has cargo || PATH=$PATH:${CARGO_HOME:-$HOME/.cargo}/bin
has cargo || fail 'cargo was not found: install Rust, for example with rustup.'
has python3 || fail 'python3 was not found: install Python 3.'

if ((EUID == 0)) && has apt-get; then
    install_with_apt || echo 'apt failed; going on with what there is' >&2
fi
{ has c++ && has make; } || fail 'A C++ compiler and make are needed: install g++ and make.'
make_venv
# Last, so that what the system has comes first.
PATH=$PATH:$tools/bin
wheel_library() { compgen -G "$tools/lib/python3*/site-packages/clang/native"; }
if ! has cmake || ! { has_libclang || wheel_library >/dev/null; }; then
    install_from_wheels
fi
if ! has_libclang; then
    LIBCLANG_PATH=$(wheel_library)
    export LIBCLANG_PATH
fi
if [[ ${LIBCLANG_PATH-} == "$tools"/* ]] || ! has_clang_headers; then
    # The wheel has no stddef.h and the like; those of GCC serve as well.
    BINDGEN_EXTRA_CLANG_ARGS=-I$(c++ -print-file-name=include)
    export BINDGEN_EXTRA_CLANG_ARGS
fi
export PATH
