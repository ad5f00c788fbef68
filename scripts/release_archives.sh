#!/usr/bin/env bash
# Builds the program for each target and writes dist/nextword-VERSION-TARGET.tar.gz (.zip for Windows) with
# its SHA-256 beside it. An archive contains the program, README, changelog, licenses, the configurations
# and shell completions. The same commit gives the same archive.
#
#     scripts/release_archives.sh [TARGET...]      # default: this machine's own target
#
# Another target needs its standard library (`rustup target add`) and linker. NEXTWORD_FEATURES replaces the
# default features, for example NEXTWORD_FEATURES=cli,flex for a small program without GPU backends.
set -euo pipefail
cd "$(dirname "$0")/.."

host=$(rustc -vV | sed -n 's/^host: //p')
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
targets=("$@")
[ ${#targets[@]} -gt 0 ] || targets=("$host")
features=()
[ -z "${NEXTWORD_FEATURES:-}" ] || features=(--no-default-features --features "$NEXTWORD_FEATURES")
out="$PWD/dist"
mkdir -p "$out"

# Files get the time of the commit, so that an archive depends on its contents alone.
time=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || date +%s)}

# Packs the folder $1 into the folder $2 with entries sorted by name, owned by no one, with time $3. Prints
# the archive's name.
pack() {
    "$(command -v python3 || command -v python)" - "$@" <<'PYTHON'
import gzip, pathlib, sys, tarfile, time, zipfile

folder, out, when = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), int(sys.argv[3])
files = sorted(path for path in folder.rglob("*") if path.is_file())
programs = ("nextword", "nextword.exe")

if "windows" in folder.name:
    archive = out / f"{folder.name}.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as file:
        for path in files:
            name = path.relative_to(folder.parent).as_posix()
            info = zipfile.ZipInfo(name, time.gmtime(when)[:6])
            info.compress_type = zipfile.ZIP_DEFLATED
            file.writestr(info, path.read_bytes(), compresslevel=9)
else:
    archive = out / f"{folder.name}.tar.gz"
    with archive.open("wb") as raw, gzip.GzipFile("", "wb", 9, raw, mtime=when) as zipped:
        with tarfile.open(fileobj=zipped, mode="w", format=tarfile.GNU_FORMAT) as file:
            for path in files:
                info = tarfile.TarInfo(path.relative_to(folder.parent).as_posix())
                info.size, info.mtime = path.stat().st_size, when
                info.mode = 0o755 if path.name in programs else 0o644
                with path.open("rb") as contents:
                    file.addfile(info, contents)
sys.stdout.write(archive.name) # Without a line end, which is two bytes on Windows.
PYTHON
}

sha256() { if command -v sha256sum >/dev/null; then sha256sum "$1"; else shasum -a 256 "$1"; fi; }

for target in "${targets[@]}"; do
    # `maturin build` strips in the same way, so it reuses this program for the wheel.
    cargo rustc --release --locked --package nextword --bin nextword --target "$target" \
        ${features[@]+"${features[@]}"} -- -C strip=symbols
    program="${CARGO_TARGET_DIR:-target}/$target/release/nextword"
    case $target in *windows*) program="$program.exe" ;; esac

    name="nextword-$version-$target"
    stage=$(mktemp -d)
    folder="$stage/$name"
    mkdir -p "$folder/completions"
    cp "$program" README.md CHANGELOG.md LICENSE-MIT LICENSE-APACHE "$folder"
    cp -R configs "$folder/configs"
    # A program for another system cannot run here; its completions are those of this system's.
    runnable="$program"
    "$runnable" --version >/dev/null 2>&1 || runnable=$(command -v nextword || true)
    if [ -n "$runnable" ]; then
        for shell in bash zsh fish powershell elvish; do
            "$runnable" completions "$shell" >"$folder/completions/nextword.$shell"
        done
    else
        rmdir "$folder/completions"
        echo "no completions: this machine cannot run $program" >&2
    fi

    archive=$(pack "$folder" "$out" "$time")
    (cd "$out" && sha256 "$archive" >"$archive.sha256")
    rm -r "$stage"
    echo "$out/$archive"
done
