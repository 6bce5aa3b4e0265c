"""What a trained denoiser knows, and where it errs."""
