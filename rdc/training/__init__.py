"""Training: trainer and its state, objectives, distillation, adversarial training, augmentation."""
