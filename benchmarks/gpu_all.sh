#!/usr/bin/env bash
# All checks that need a GPU, in one command: first the tests of correctness, then the speed measurements.
#   benchmarks/gpu_all.sh [python]        full        QUICK=1 benchmarks/gpu_all.sh        few repeats, no memory
# A part that fails, or takes more than LIMIT seconds (default 3600), does not stop the others. Code that failed its test
# is not timed. The exit code is the number of parts that failed or were left out.
set -u
cd "$(dirname "$0")/.." || exit 1
python=${1:-python}
limit=${LIMIT:-3600}
flags=()
[ -n "${QUICK:-}" ] && flags=(--repeats 2 --no-memory)
quick_repeats=()
[ -n "${QUICK:-}" ] && quick_repeats=(--repeats 2)
failed=0

part() {
    echo; echo "== $*"
    timeout --kill-after=30 "$limit" "$@"
    local code=$?
    [ $code -eq 0 ] && return 0
    failed=$((failed + 1))
    echo "== FAILED ($code): $*"
    return 1
}

left_out() {
    failed=$((failed + 1))
    echo; echo "== LEFT OUT, $1: $2"
}

"$python" -c 'import torch; assert torch.cuda.is_available(), "torch finds no GPU"; print(torch.cuda.get_device_name())' || exit 1

# Correctness. Without the interpreter these tests run the kernels on the GPU, in one process. `-W default`: a warning of
# a GPU library is not an error.
unset TRITON_INTERPRET
tests=("$python" -m pytest -q -o addopts= --import-mode=importlib -W default)
kernels=right
part "${tests[@]}" tests/memory/test_triton.py tests/memory/test_triton_compile.py || kernels=wrong
part "${tests[@]}" tests/memory/test_measure.py
graph=right
part "${tests[@]}" tests/models/test_decode_graph.py || graph=wrong

# `--measure` compares and times the chunk loop, the same loop compiled, and the fused kernels; `auto` then takes the
# fastest.
export TITANS_CACHE=${TITANS_CACHE:-$(mktemp -d)}
part "$python" -m titanslab.cli info --preset 340m --variant mag
part "$python" -m titanslab.cli info --preset 340m --variant mag --measure
part "$python" -m benchmarks.memory_op --row gpu16 --memory-limit 70 --backend auto "${flags[@]}"
part "$python" -m benchmarks.train_step --row gpu --size 340m --backend auto "${flags[@]}"
rm -f "$TITANS_CACHE/titanslab/measured.json"

# `chunked` is the portable path, `triton` the fused one. Decoding is measured with `auto` and with `triton`.
for backend in chunked triton; do
    if [ $backend = triton ] && [ $kernels = wrong ]; then
        left_out "the kernels are wrong here" "memory_op, train_step and decode with --backend triton"
        continue
    fi
    on=(--backend "$backend")
    part "$python" -m benchmarks.memory_op --row gpu16 --memory-limit 70 "${on[@]}" "${flags[@]}"
    part "$python" -m benchmarks.train_step --row gpu --size 340m "${on[@]}" "${flags[@]}"
    part "$python" -m benchmarks.train_step --row gpu --size 170m "${on[@]}" "${flags[@]}"
    part "$python" -m benchmarks.train_step --row gpu --size 340m --compile "${on[@]}" "${flags[@]}"
    part "$python" -m benchmarks.train_step --row gpu --size 340m --checkpointing "${on[@]}" "${flags[@]}"
    if [ $graph = wrong ]; then
        left_out "decoding as a CUDA graph is wrong here" "decode with --backend $backend"
    elif [ $backend = chunked ]; then
        part "$python" -m benchmarks.decode --size 170m --backend auto "${quick_repeats[@]}"
    else
        part "$python" -m benchmarks.decode --size 170m "${on[@]}" "${quick_repeats[@]}"
    fi
    part "$python" -m benchmarks.memory_op --batch 8 --dim 1024 --heads 16 --window 2048 --device cuda \
        --memory-limit 70 "${on[@]}" "${flags[@]}"
done
echo; echo "== done, $failed part(s) failed or were left out; results in benchmarks/results"
exit $failed
