#!/usr/bin/env bash
# Compiles the core for this machine and for aarch64, and compares the digests of every codec: each CPU target here, baseline and
# NEON under qemu-user. Then the fuzz corpus runs on aarch64.
set -euo pipefail
cd "$(dirname "$0")/../.."
missing=
command -v aarch64-linux-gnu-g++ >/dev/null || missing="g++-aarch64-linux-gnu"
command -v qemu-aarch64 >/dev/null || missing="$missing qemu-user"
[[ -z $missing ]] || { echo "make check-arm needs a cross compiler and an emulator: apt-get install $missing" >&2; exit 2; }
mkdir -p build
for preset in native arm; do
  cmake -S tests --preset $preset >build/$preset.log || { cat build/$preset.log; exit 1; }
  cmake --build build/$preset >>build/$preset.log || { tail -50 build/$preset.log; exit 1; }
done

here=baseline
grep -qw avx2 /proc/cpuinfo && here="$here avx2"
grep -qw avx512vl /proc/cpuinfo && here="$here avx512"
[[ $(uname -m) == x86_64 ]] || here="baseline neon"
runs=()
for target in $here; do
  DANCE_CPU=$target build/native/digests >build/digests_here_$target.txt 2>/dev/null
  runs+=(here_$target)
done
for target in baseline neon; do
  DANCE_CPU=$target qemu-aarch64 build/arm/digests >build/digests_aarch64_$target.txt 2>/dev/null &
  runs+=(aarch64_$target)
done
wait

status=0
expected=build/digests_here_baseline.txt
[[ -s $expected ]] || { echo "build/native/digests printed nothing" >&2; exit 1; }
for run in "${runs[@]}"; do
  if differences=$(diff $expected build/digests_$run.txt); then
    echo "$run: $(wc -l <$expected) digests, equal to here_baseline"
  else
    status=1
    echo "$run: $(grep -c '^[<>]' <<<"$differences") lines of build/digests_$run.txt differ from $expected, e.g."
    grep '^[<>]' <<<"$differences" | head -6
  fi
done
for target in frame decode round_trip targets; do
  if said=$(qemu-aarch64 build/arm/fuzz_$target tests/fuzz/corpus/$target 2>&1); then
    echo "aarch64, fuzz corpus $target: $said"
  else
    status=1
    echo "aarch64, fuzz corpus $target: $said"
  fi
done
exit $status
