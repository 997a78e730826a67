"""Options of rdc train and rdc distill for CIFAR-10 on a GPU."""

__all__ = ["RECIPES", "SHARED"]

_LABELS = "--classes-per-image 0 --posterior-weight 1 --posterior-scale 0.03 --shift 3 --wide-channels 256"
#: options of rdc train and rdc distill on a GPU; the student's labels are its own posterior, without passes of the teacher
RECIPES = {
    "teacher": "--batch-size 1024 --lr 2e-3 --warmup-images 100000 --ema-images 300000 --noise-mean -0.6 --noise-std 1.1",
    "student": f"--batch-size 1024 --lr 1e-3 --warmup-images 60000 --ema-images 200000 {_LABELS} --noise-mean -0.5 "
    "--noise-std 0.9",
    "robust": f"--batch-size 512 --lr 1.2e-3 --warmup-images 60000 --ema-images 250000 {_LABELS} --secant-eps 8/255 "
    "--noise-mean -1.2 --noise-std 0.7 --cutmix 0.3 --weight-decay 0.05",
}
#: not compiled: on an H200 torch.compile of the teacher had made no step after 75 seconds
SHARED = "--precision bfloat16 --flip --checkpoint-seconds 60 --cuda-graph"
