#!/bin/sh
# Runs the tests as an ordinary user without any capability, who may only read the interpreter and writes to a
# copy of the tree. usage: tests/as_user.sh PYTHON [pytest arguments]. Without root it is the tests as they are.
set -eu
python=$1
shift
[ "$(id -u)" = 0 ] || exec "$python" -m tests.halves "$@"

user=65534
drop="setpriv --reuid=$user --regid=$user --clear-groups --bounding-set=-all"
tree=$PWD
base=$("$python" -c 'import sys; print(sys.base_prefix)')
venv=$("$python" -c 'import sys; print(sys.prefix)')
if ! command -v setpriv >/dev/null || ! unshare --mount true 2>/dev/null; then
    echo "test-user: left out, as nobody may be made an ordinary user here (setpriv, unshare --mount)"
    exit 0
fi

place=$(mktemp -d /tmp/as-user-XXXXXX)
trap 'rm -rf "$place"' EXIT INT TERM
mkdir "$place/tree" "$place/home" "$place/tmp" "$place/mounts"
git ls-files -z --cached --others --exclude-standard | tar -c --null -T - | tar -x -C "$place/tree"
cp ksmpy/_ksmpy*.so "$place/tree/ksmpy/"
chown -R "$user:$user" "$place/tree" "$place/home" "$place/tmp"
chmod 755 "$place"

# What lies where only root may go (an interpreter in root's home) is shown at its own path all the same,
# in a mount namespace of its own.
cat >"$place/show.sh" <<'SHOW'
set -eu
place=$1 drop=$2
shift 2
number=0
while [ "$1" != -- ]; do
    path=$1 blocked=$1
    shift
    # Exec'd by setpriv itself a file might be opened with its rights, hence a shell in between.
    $drop sh -c 'test -r "$0" && test -x "$0"' "$path" && continue
    number=$((number + 1))
    while [ "$(dirname "$blocked")" != / ] && ! $drop sh -c 'test -x "$0"' "$(dirname "$blocked")"; do
        blocked=$(dirname "$blocked")
    done
    mkdir "$place/mounts/$number"
    mount --bind "$path" "$place/mounts/$number"
    mount -t tmpfs -o mode=755 tmpfs "$blocked"
    mkdir -p "$path"
    mount --bind "$place/mounts/$number" "$path"
done
shift
cd "$place/tree"
exec $drop env HOME="$place/home" TMPDIR="$place/tmp" PYTHONPATH="$place/tree" sh -c 'exec "$0" "$@"' "$@"
SHOW
unshare --mount sh "$place/show.sh" "$place" "$drop" "$base" "$venv" -- \
    "$tree/${python#"$tree/"}" -m tests.halves "$@"
