#!/usr/bin/env bash
# The checks and timings that decide on a GPU, in at most ten minutes on one H100 or H200, the most valuable first.
#   benchmarks/gpu_first.sh [python]                results in benchmarks/results
#   OUT=folder benchmarks/gpu_first.sh [python]     results in that folder
#   DRY=1 benchmarks/gpu_first.sh [python]          all parts on a CPU with toy sizes, a minute on one core
# Each part has a limit in seconds, and what an earlier part leaves of its own; LIMITS="170 50 70 180 90" are the limits
# of kernels, op, fla, train_step and decode. A JSON file is written after every candidate, so a part that is ended loses
# only the candidate that was running. A part that fails does not stop the others. The exit code is the number of parts
# that failed. Kernels that were wrong are not timed. `gpu_all.sh` has the whole measurement.
set -u
cd "$(dirname "$0")/.." || exit 1
python=${1:-$(command -v python || command -v python3)}
out=${OUT:-benchmarks/results}
read -r -a limits <<<"${LIMITS:-170 50 70 180 90}"
export PYTHONPATH="$PWD/src${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
mkdir -p "$out" || exit 1

device=cpu
if [ -z "${DRY:-}" ]; then
    unset TRITON_INTERPRET
    device=$(nvidia-smi --query-gpu=name --format=csv,noheader 2>/dev/null | tr '[:upper:]' '[:lower:]' |
        grep -oE '[a-z]+[0-9]+[a-z]*' | head -n 1)
fi
stem="$out/$(date -u +%F)_${device:-gpu}_first"
run=""
number=1
while compgen -G "${stem}_*$run.json" >/dev/null; do
    number=$((number + 1))
    run=-$number
done

failed=0
end=0
part() { # NAME COMMAND...: runs `python -m COMMAND --out FILE` until the sum of the limits so far
    local name=$1
    shift
    end=$((end + limits[0]))
    limits=("${limits[@]:1}")
    echo; echo "== $name, until second $end: $*"
    timeout --kill-after=5 $((end > SECONDS ? end - SECONDS : 1)) "$python" -m "$@" --out "${stem}_$name$run.json"
    local code=$?
    if [ $code -ne 0 ]; then
        failed=$((failed + 1))
        echo "== FAILED ($code$([ $code -eq 124 ] && echo ", not done in time")): $name"
    fi
    return $code
}

# A kernel takes up to a minute to compile. These fill Triton's cache beside the first part; their results are not kept.
compiled=$(mktemp -d)
shares=$(nvidia-smi --query-gpu=compute_mode --format=csv,noheader 2>/dev/null | head -n 1)
ahead() {
    [ "${shares:-Default}" = Default ] || return 0 # this GPU takes one process at a time
    nice -n 19 timeout --kill-after=5 "${limits[0]}" "$python" -m "$@" --out "$compiled/$RANDOM$RANDOM.json" >/dev/null 2>&1 &
}

op=(benchmarks.memory_op --depth 2 --no-memory)
train=(benchmarks.train_step --no-memory)
decode=(benchmarks.decode)
check=(benchmarks.kernels)
if [ -n "${DRY:-}" ]; then
    export TRITON_INTERPRET=1
    check+=(--device cpu --tiny --shapes portable bf16-16 step)
    op+=(--device cpu --tokens 64 --base-tokens 64 --dim 16 --heads 1 --repeats 1 --warmup 0 --no-forward)
    train+=(--device cpu --size tiny --tokens 32 64 --repeats 1 --warmup 0)
    decode+=(--device cpu --size tiny --positions 128 1024 --real 128 --decode-tokens 2 --prefill-tokens 8 --repeats 1)
else
    check+=(--seconds $((limits[0] - 30)))
    op+=(--device cuda --tokens 4096 --base-tokens 4096 --dim 1024 --heads 16 --batch 8)
    train+=(--device cuda --size 340m --repeats 3)
    decode+=(--device cuda --size 170m --positions 1024 65536 1048576 --decode-tokens 64 --repeats 3)
    for shape in bf16-64 float32-16 step bf16-48 float32-prefix bf16-ragged float32-ragged float32-64 bf16-linear \
        bf16-wide; do
        ahead "${check[@]}" --shapes $shape
    done
    for model in lmm mac; do
        ahead "${train[@]}" --tokens 1024 --batch 1 --warmup 0 --backend triton --candidates $model
        ahead "${decode[@]}" --positions 1024 --real 1024 --backend triton --candidates $model
    done
fi

part kernels "${check[@]}"
wrong=$?
wait
rm -rf "$compiled"
triton=(titanslab-op:triton)
backend=triton
if [ $wrong -eq 2 ]; then
    echo "== the kernels are wrong here: the parts below run without them"
    triton=()
    backend=chunked
fi
part op "${op[@]}" --chunk 16 64 --candidates titanslab-op:chunked "${triton[@]}" sdpa-full
part fla "${op[@]}" --chunk 16 64 --candidates "${triton[@]:-titanslab-op:chunked}" fla-gated-delta-rule
if [ -n "${DRY:-}" ]; then
    backend=chunked # the interpreter takes minutes for a model
else
    train+=(--tokens 4096 16384)
fi
part train_step "${train[@]}" --backend $backend --candidates attention-full lmm mag mac
part decode "${decode[@]}" --backend $backend --candidates lmm mac attention-full
echo; echo "== done in $SECONDS s, $failed part(s) failed; results in $out"
exit $failed
