#!/bin/sh
# Installs the agent of one device of a fedmq federation; everything that it needs is in this file, behind this text.
#
#   sh FILE                  install, or upgrade; may be run again at any time, after a power cut in the middle too
#   sh FILE --check          only say whether it could be installed here
#   sh FILE --no-start       install, but do not start the agent
#   sh FILE --root DIR       install into the system that lies in DIR
#   sh FILE --uninstall      undo; what the device has learned stays in /var/lib/fedmq, unless --purge is given too
#
# Nothing is changed before it is known that the board fits and that this file is whole.
set -eu
umask 022
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin # of the board's own, whoever calls
export PATH

name='@NAME@'
release='@RELEASE@'
arch='@ARCH@'
kernels='@KERNELS@'
bits='@BITS@'
python_version='@PYTHON@'
glibc_minor='@GLIBC@'
needs_kb='@NEEDS_KB@'
offset=$((1@OFFSET@ - 1000000000))
parts_bytes=@PARTS@
payload_sha256='@PAYLOAD@'

say() { printf '%s\n' "$*"; }
fail() { printf 'cannot install: %s\n' "$*" >&2; exit 1; }

action=install start=yes root= purge=no
while [ $# -gt 0 ]; do
    case $1 in
        --check) action=check ;;
        --uninstall) action=uninstall ;;
        --purge) purge=yes ;;
        --no-start) start=no ;;
        --root) [ $# -ge 2 ] || fail '--root needs a folder'; root=$2; shift ;;
        --root=*) root=${1#--root=} ;;
        -h | --help) sed -n '2,/^$/s/^# \{0,1\}//p' "$0"; exit 0 ;;
        *) fail "there is no option $1; --help lists them" ;;
    esac
    shift
done

check_whole() {
    [ -f "$0" ] || fail 'this must be run from a file'
    found=$(tail -c +$((offset + 1)) "$0" | sha256sum | cut -d ' ' -f 1)
    [ "$found" = "$payload_sha256" ] || fail "$0 is damaged: copy it again"
}

# Another root: the same file runs inside it, so that it is that system's Python and users that count.
if [ -n "$root" ]; then
    [ -d "$root" ] || fail "there is no folder $root"
    [ "$(id -u)" = 0 ] || fail 'only root may enter another root: use sudo'
    [ -e "$root/bin/sh" ] || [ -L "$root/bin/sh" ] || fail "no system lies in $root: it has no /bin/sh"
    within() { # the options, with the file inside or, for a check, without it
        SYSTEMD_OFFLINE=1 FEDMQ_OTHER_ROOT="$root" chroot "$root" /bin/sh "$@"
    }
    if [ "$action" != uninstall ]; then
        header=$(head -c "$offset" "$0"; echo x) # `$()` cuts trailing newlines off
        printf '%s' "${header%x}" | within -s -- --check
    fi
    [ "$action" != check ] || exit 0
    [ "$action" = uninstall ] || check_whole
    copy=$(mktemp "$root/var/tmp/fedmq-install.XXXXXX")
    trap 'rm -f "$copy"' EXIT
    trap 'exit 129' HUP; trap 'exit 130' INT; trap 'exit 143' TERM
    cat "$0" >"$copy"
    set -- --no-start
    [ "$action" = install ] || set -- --uninstall
    [ "$purge" = no ] || set -- "$@" --purge
    within "${copy#"$root"}" "$@"
    exit 0
fi

opt=/opt/fedmq
incoming=$opt/.incoming
etc=/etc/fedmq
state=/var/lib/fedmq
unit=/etc/systemd/system/fedmq-agent.service
wanted=/etc/systemd/system/multi-user.target.wants/fedmq-agent.service

systemd_runs() { [ -d /run/systemd/system ] && [ "${SYSTEMD_OFFLINE:-0}" != 1 ] && command -v systemctl >/dev/null; }
systemd_is_here() { [ -d /etc/systemd/system ] || [ -d /lib/systemd/system ]; }

# ---------------------------------------------------------------------------------------------- what there must be

find_python() {
    other=
    for candidate in "python$python_version" python3; do
        python=$(command -v "$candidate" 2>/dev/null) || continue
        found=$("$python" -I -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || continue
        [ "$found" != "$python_version" ] || return 0
        other=$found
    done
    [ -n "$other" ] || fail "this bundle is for Python $python_version, and there is no Python here"
    fail "this bundle is for Python $python_version, and here is $other; make one with --python $other"
}

check() {
    machine=$(uname -m)
    case " $kernels " in
        *" $machine "*) ;;
        *) fail "this bundle is for $arch, and this board is $machine; make one with another --arch" ;;
    esac
    find_python
    # -I: root may stand in a folder where others leave a struct.py.
    "$python" -I - "$bits" "$glibc_minor" <<'END' || exit 1
import os, struct, sys
def fail(text):
    sys.exit("cannot install: " + text)
bits = 8 * struct.calcsize("P")
if bits != int(sys.argv[1]):
    fail("this bundle is for a %s-bit system, and Python here has %d bits; make one with another --arch" % (sys.argv[1], bits))
try:
    libc = os.confstr("CS_GNU_LIBC_VERSION").split()
    version = tuple(int(part) for part in libc[1].split(".")[:2])
except (AttributeError, OSError, ValueError):
    fail("the wheels in this bundle need glibc, and this system has another C library")
if version < (2, int(sys.argv[2])):
    fail("the wheels in this bundle need glibc 2.%s or newer, and this system has %s" % (sys.argv[2], libc[1]))
try:
    import asyncio, compileall, ctypes, ssl, tarfile, zipfile, zlib
except ImportError as error:
    fail("Python here lacks %s: install all of it (on Debian: apt-get install python3)" % error.name)
END
    for tool in awk chmod chown cut df grep head ln mv readlink rm sha256sum tail tar; do
        command -v "$tool" >/dev/null || fail "there is no $tool here"
    done
    command -v useradd >/dev/null || command -v adduser >/dev/null || fail 'there is neither useradd nor adduser here'
    if [ ! -d "$opt/releases/$release" ]; then
        place=$opt
        while [ ! -d "$place" ]; do place=$(dirname "$place"); done
        free_kb=$(df -Pk "$place" 2>/dev/null | awk 'NR == 2 { print $4 }')
        [ "$free_kb" -ge "$needs_kb" ] ||
            fail "it takes $((needs_kb / 1024)) MB below $place, and $((free_kb / 1024)) MB are free"
    fi
}

# ------------------------------------------------------------------------------------------------------- the steps

# The small and secret parts of the archive, in a folder of root's own until the end.
take_parts() {
    mkdir -p "$opt"
    rm -rf "$incoming"
    mkdir -m 0700 "$incoming"
    tail -c +$((offset + 1)) "$0" | head -c "$parts_bytes" | tar -xf - -C "$incoming"
}

# place FILE MODE OWNER: what comes in on standard input becomes FILE, all of it or nothing.
place() {
    (umask 077; cat >"$1.new")
    chown "$3" "$1.new"
    chmod "$2" "$1.new"
    mv -f "$1.new" "$1"
}

make_user() {
    nologin=$(command -v nologin || echo /usr/sbin/nologin)
    if ! grep -q '^fedmq:' /etc/group; then
        if command -v groupadd >/dev/null; then groupadd --system fedmq; else addgroup -S fedmq; fi
    fi
    if ! grep -q '^fedmq:' /etc/passwd; then
        if command -v useradd >/dev/null; then
            useradd --system --gid fedmq --home-dir "$state" --no-create-home --shell "$nologin" fedmq
        else
            adduser -S -D -H -h "$state" -s "$nologin" -G fedmq fedmq
        fi
    fi
}

lay_out_release() {
    mkdir -p "$opt/releases" "$opt/bin"
    if [ -d "$opt/releases/$release" ]; then
        say "  software: $release, here already"
        return
    fi
    say "  software: $release"
    "$python" -I "$incoming/unpack.py" "$0" $((offset + parts_bytes)) "$incoming/manifest" "$opt/releases/$release"
}

lay_out_settings() {
    mkdir -p "$etc/identity" "$state"
    chown root:fedmq "$etc" "$etc/identity"
    chmod 0750 "$etc" "$etc/identity"
    chown fedmq:fedmq "$state"
    chmod 0750 "$state"
    for file in ca.pem cert.pem key.pem password; do
        if [ -f "$incoming/etc/identity/$file" ]; then
            place "$etc/identity/$file" 0640 root:fedmq <"$incoming/etc/identity/$file"
        elif [ "$file" != key.pem ] && [ -d "$incoming/etc/identity" ]; then
            rm -f "$etc/identity/$file" # of an earlier identity; a key may be the device's own
        fi
    done
    if [ -f "$etc/device.toml" ] && [ "$(cat "$etc/device.toml")" != "$(cat "$incoming/etc/device.toml")" ]; then
        place "$etc/device.toml.old" 0640 root:fedmq <"$etc/device.toml"
        say "  settings: new ones; those until now are kept as $etc/device.toml.old"
    fi
    place "$etc/device.toml" 0640 root:fedmq <"$incoming/etc/device.toml"
}

lay_out_program() {
    place "$opt/bin/fedmq" 0755 root:root <<END
#!/bin/sh
# One release from start to end, even where an upgrade comes between.
here=\$(readlink -f $opt/current)
export PYTHONPATH="\$here/lib" PYTHONNOUSERSITE=1 PYTHONDONTWRITEBYTECODE=1 PYTHONSAFEPATH=1
exec $python -m fedmq "\$@"
END
    ln -sfn "releases/$release" "$opt/current.new"
    mv -T "$opt/current.new" "$opt/current"
}

lay_out_unit() {
    if ! systemd_is_here; then return; fi
    mkdir -p "${wanted%/*}"
    place "$unit" 0644 root:root <"$incoming/fedmq-agent.service"
    ln -sfn "$unit" "$wanted"
}

remove_old_releases() {
    for old in "$opt"/releases/* "$opt"/releases/.*.part; do
        case $old in
            "$opt/releases/$release" | "$opt/releases/*" | "$opt/releases/.*.part") ;;
            *) [ "$old" = "$previous" ] || rm -rf "$old" ;;
        esac
    done
}

start_agent() {
    if [ "$start" = no ]; then
        say '  agent:    not started, as asked'
    elif systemd_runs; then
        systemctl daemon-reload
        systemctl restart --no-block fedmq-agent.service
        say '  agent:    started; journalctl -u fedmq-agent tells how it fares'
    elif systemd_is_here; then
        say '  agent:    starts with this system: systemd does not run now'
    else
        say '  agent:    there is no systemd here; let your init system run, as the user fedmq:'
        say "            $opt/bin/fedmq agent start --config $etc/device.toml"
    fi
}

uninstall() {
    if systemd_runs; then systemctl disable --now fedmq-agent.service 2>/dev/null || true; fi
    rm -f "$wanted" "$unit" "${wanted%/*}/fedmq-firstboot.service" "${unit%/*}/fedmq-firstboot.service"
    rm -rf "$opt" "$etc"
    if systemd_runs; then systemctl daemon-reload; fi
    say "removed $opt, $etc and $unit"
    if [ "$purge" = yes ]; then
        rm -rf "$state"
        if grep -q '^fedmq:' /etc/passwd; then
            if command -v userdel >/dev/null; then userdel fedmq; else deluser fedmq; fi
        fi
        if grep -q '^fedmq:' /etc/group; then
            if command -v groupdel >/dev/null; then groupdel fedmq; else delgroup fedmq; fi
        fi
        say "removed $state and the user fedmq"
    elif [ -d "$state" ]; then
        say "kept $state, and the user fedmq whose it is; --purge removes them"
    fi
}

lock() {
    command -v flock >/dev/null || return 0
    exec 9</etc
    flock -n 9 || fail 'another installation is under way here'
}

if [ "$action" = uninstall ]; then
    [ "$(id -u)" = 0 ] || fail 'only root can: use sudo'
    lock
    uninstall
    exit 0
fi
check
if [ "$action" = check ]; then
    say "$name can be installed here: $arch, $($python -V)"
    exit 0
fi
[ "$(id -u)" = 0 ] || fail 'only root can: use sudo'
check_whole
lock
say "installing $name${FEDMQ_OTHER_ROOT:+ in $FEDMQ_OTHER_ROOT}"
previous=$(readlink -f "$opt/current" 2>/dev/null || true)
take_parts
make_user
lay_out_release
lay_out_settings
lay_out_program
lay_out_unit
remove_old_releases
rm -rf "$incoming"
sync
say "  program:  $opt/bin/fedmq"
say "  settings: $etc/device.toml, identity in $etc/identity"
say "  state:    $state"
start_agent
say 'done'
exit 0
