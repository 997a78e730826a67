"""What follows from a posterior: calibration, abstention, images of other kinds, decisions that stop early."""
