#!/bin/sh
# Meta-steps on some of a host's GPUs: 16 scenes on each (weak scaling) and 64 on all (strong), on our kernels and on XLA.
#
#   benchmarks/scaling.sh 1 2 4 8
#   REALCARS=FOLDER benchmarks/scaling.sh 1 2 4 8    and trainings of equal scene-iterations, with their PSNR
#   benchmarks/scaling.sh cpu 1 2 8                  a dry run, on devices that a CPU only claims to have
#
# Prints the rows of step_time.py and time_to_psnr.py, of which scaling_figure.py makes a figure; PYTHON may be given.
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-python} small=
if [ "${1:-}" = cpu ]; then
    small=--small
    shift
fi
case "$*" in
"" | *[!0-9\ ]* | 0* | *\ 0*)
    echo "error: give numbers of devices, as: benchmarks/scaling.sh 1 2 4, or: benchmarks/scaling.sh cpu 1 2" >&2
    exit 2
    ;;
esac
for count in "$@"; do
    if [ "$small" ]; then
        export JAX_PLATFORMS=cpu XLA_FLAGS="--xla_force_host_platform_device_count=$count"
    else
        CUDA_VISIBLE_DEVICES=$(seq -s, 0 $((count - 1)))
        export CUDA_VISIBLE_DEVICES NCCL_NVLS_ENABLE=0
        if ! $python -c "import jax, sys; sys.exit(jax.default_backend() != 'gpu' or jax.device_count() != $count)"; then
            echo "error: there are fewer than $count GPUs here; give fewer, or: benchmarks/scaling.sh cpu $*" >&2
            exit 2
        fi
    fi
    for implementation in auto xla; do
        echo "== $count devices, $implementation"
        $python benchmarks/step_time.py $small --batches $(printf '%s\n' $((16 * count)) 64 | uniq) \
            --implementation $implementation
    done
    if [ "${REALCARS:-}" ]; then
        $python benchmarks/time_to_psnr.py cars --root "$REALCARS" -- --outer.num-scenes 16 --outer.num-steps 750 \
            --validation.every 0
    fi
done
