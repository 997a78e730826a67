"""Native ops, one file each: definition in maths, torch reference, native wrapper, fake kernels, autograd, public function."""
