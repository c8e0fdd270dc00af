# shellcheck shell=bash
# Sees to the programs of others that the tests run: PostgreSQL's server, nginx, HAProxy, strace.
#
# To be sourced after setup.sh. What the system has is used. On Debian what is missing is unpacked
# into .tools/ and not installed: no root is needed, and no package can start a daemon, make a
# cluster or enable itself for the next start of the machine.

# Programs as tests/clients/programs.py is asked for them, and where Debian has them.
declare -rA package_of=(
    [initdb]=postgresql [psql]=postgresql [postgres]=postgresql
    [nginx]=nginx [haproxy]=haproxy [strace]=strace
)

readonly unpacked=$PWD/.tools/debian

missing_programs() { python3 tests/clients/programs.py "${!package_of[@]}"; }

# Downloads packages with all that they need and the system lacks, and unpacks them.
unpack_from_debian() {
    local apt=$PWD/.tools/apt package
    local options=(
        -qq -o Debug::NoLocking=true -o APT::Sandbox::User=root
        -o Dir::State::Lists="$apt/lists" -o Dir::Cache="$apt/cache"
    )
    echo "unpacking into .tools/: $*" >&2
    mkdir -p "$apt/lists/partial" "$apt/cache/archives/partial" "$unpacked"
    apt-get "${options[@]}" update || return
    apt-get "${options[@]}" install --download-only --yes --no-install-recommends "$@" >/dev/null ||
        return
    for package in "$apt"/cache/archives/*.deb; do
        dpkg-deb --extract "$package" "$unpacked" || return
    done
    rm -rf "$apt"
}

# A program that was unpacked has to be told where the libraries are that came with it.
link_unpacked() {
    local program path libraries
    libraries=$(compgen -G "$unpacked/usr/lib/*-linux-gnu*" | paste -sd:)
    mkdir -p .tools/bin
    for program in "$@"; do
        path=$(compgen -G "$unpacked/usr/lib/postgresql/*/bin/$program" ||
            compgen -G "$unpacked/usr/*bin/$program") || continue
        printf '#!/bin/sh\nLD_LIBRARY_PATH=%q exec %q "$@"\n' "$libraries" "$path" \
            >".tools/bin/$program"
        chmod +x ".tools/bin/$program"
    done
}

mapfile -t missing < <(missing_programs)
if ((${#missing[@]})) && has apt-get && has dpkg-deb; then
    mapfile -t packages < <(for program in "${missing[@]}"; do
        echo "${package_of[$program]}"
    done | sort -u)
    if unpack_from_debian "${packages[@]}"; then
        link_unpacked "${missing[@]}"
    else
        echo 'apt failed; going on with what there is' >&2
    fi
    mapfile -t missing < <(missing_programs)
fi
((${#missing[@]} == 0)) || fail \
    "The tests run programs that were not found: ${missing[*]}." \
    'Install the server of PostgreSQL, nginx, HAProxy and strace.'
