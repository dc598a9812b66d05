#!/usr/bin/env bash
# Everything that waits for a GPU, in one command: first that the results are right, then how fast they come.
#   benchmarks/gpu_all.sh [python]        full        QUICK=1 benchmarks/gpu_all.sh        few repeats, no memory
# A part that fails does not stop the others; the exit code is the number of parts that failed.
set -u
cd "$(dirname "$0")/.."
python=${1:-python}
flags=()
[ -n "${QUICK:-}" ] && flags=(--repeats 2 --no-memory)
quick_repeats=()
[ -n "${QUICK:-}" ] && quick_repeats=(--repeats 2)
failed=0

part() {
    echo; echo "== $*"
    "$@" || { failed=$((failed + 1)); echo "== FAILED ($?): $*"; }
}

"$python" -c 'import torch; assert torch.cuda.is_available(), "torch finds no GPU"; print(torch.cuda.get_device_name())' || exit 1

# no speed without correctness: without the interpreter these run the kernels on the GPU
unset TRITON_INTERPRET
shopt -s nullglob
tests=(tests/memory/test_triton*)
if [ ${#tests[@]} -gt 0 ]; then
    "$python" -m pytest "${tests[@]}" || { echo "== the kernels are wrong here: nothing is measured"; exit 1; }
else
    echo "== no tests/memory/test_triton*: kernels not checked"
fi
"$python" -m pytest tests/models/test_decode_graph.py || { echo "== decoding as a CUDA graph is wrong here"; exit 1; }

part "$python" -m benchmarks.memory_op --row gpu16 "${flags[@]}"
part "$python" -m benchmarks.train_step --row gpu --size 340m "${flags[@]}"
part "$python" -m benchmarks.train_step --row gpu --size 170m "${flags[@]}"
part "$python" -m benchmarks.train_step --row gpu --size 340m --compile "${flags[@]}"
part "$python" -m benchmarks.train_step --row gpu --size 340m --checkpointing "${flags[@]}"
part "$python" -m benchmarks.decode --size 170m "${quick_repeats[@]}"
part "$python" -m benchmarks.memory_op --batch 8 --dim 1024 --heads 16 --window 2048 --device cuda "${flags[@]}"
echo; echo "== done, $failed part(s) failed; results in benchmarks/results"
exit $failed
