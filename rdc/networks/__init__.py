"""Networks: EDM-compatible U-Nets and the presets built from them."""
