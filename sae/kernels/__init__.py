"""Fused kernels of sparse training on a GPU, each beside a reference in plain torch.

`<op>.py` holds the public function, its reference and its cases; `<op>_triton.py` the kernels, imported only where they
run, so that the package loads without Triton. Nothing here waits for the device: counts stay in its memory.

1. `topk_select`, `threshold_select`, `above_select`: pre-activations to codes.
2. `decode_loss`: codes to errors, losses and the gradients of the codes.
3. `latent_order`: the codes sorted by latent.
4. `latent_reduce`, `latent_adam`: sums over each latent's codes; the latter moves the weights at once.
5. `revive`: the auxiliary loss of dead latents, made of the same operations.
6. `jump`: the element-wise passes of JumpReLU; `shrink`: those of ReLU latents under a penalty; `gate`: of gated ones.
"""
