"""The paper as one room (arXiv 2305.15241): noise levels, denoiser, posterior, likelihood maximisation, classifier, samples."""
