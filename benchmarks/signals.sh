#!/bin/sh
# What learning buys for pictures and for CT, on classes that are drawn. On one GPU; PYTHON and OUT may be given.
#
#   benchmarks/signals.sh images    MAML as the paper's authors, at a higher outer rate; minutes
#   benchmarks/signals.sh ct        Reptile; learned against standard from 1, 2, 4 and 8 projections; a quarter of an hour
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-python} out=${OUT:-runs}

# validation_psnr in metrics.jsonl is the curve over the meta-steps.
if [ "${1:-}" = images ]; then
    $python train.py images-paper --run "$out/images" --outer.num-steps 1000 --outer.learning-rate 3e-5 \
        --validation.every 200 --log-every 100
    $python eval.py "$out/images" --num-scenes 100 --stages 0 1 2 5
    $python eval.py "$out/images" --num-scenes 100 --support 1 --query 2 --stages 0 2 5 20 --out "$out/images/left"
    $python eval.py "$out/images" --num-scenes 100 --support 3 --query 4 --stages 0 2 5 20 --out "$out/images/tenth"
elif [ "${1:-}" = ct ]; then
    $python train.py ct --run "$out/ct"
    for rate in "sgd 10" "sgd 3" "adam 1e-3"; do
        set -- $rate
        $python eval.py "$out/ct" --num-scenes 50 --view-counts 1 2 4 8 --stages 0 50 100 1000 --optimiser "$1" \
            --step-size "$2" --out "$out/ct/$1-$2"
    done
    $python benchmarks/ct_views.py "$out"/ct/sgd-10 "$out"/ct/sgd-3 "$out"/ct/adam-1e-3
else
    echo "error: give images or ct, as: benchmarks/signals.sh ct" >&2
    exit 2
fi
