"""Classes of the blocks of networks, by which trainers choose the layers to train."""

from __future__ import annotations

from collections.abc import Mapping

ENCODERS = {
    r".*\.self_attn": "CLIPAttention", r".*\.layers\.\d+\.mlp": "CLIPMLP",
    r".*\.SelfAttention": "T5Attention", r".*\.DenseReluDense": "T5DenseGatedActDense",
}  # fmt: skip
UNET = {
    r".*\.attentions\.\d+": "Transformer2DModel", r".*attn[12]": "CrossAttention",
    r".*\.resnets\.\d+": "ResnetBlock2D", r".*\.upsamplers\.0": "Upsample2D",
    r".*\.downsamplers\.0": "Downsample2D",
}  # fmt: skip
_SGM = {
    r"(?:input_blocks\.\d+|output_blocks\.\d+|middle_block)\.1": "Transformer2DModel",
    r".*attn[12]": "CrossAttention",
    r"(?:input_blocks|output_blocks)\.\d+\.0|middle_block\.[02]": "ResnetBlock2D",
    r"output_blocks\.\d+\.2": "Upsample2D",
}  # fmt: skip
_FLUX = {r"double_blocks\.\d+": "DoubleStreamBlock", r"single_blocks\.\d+": "SingleStreamBlock"}
_MMDIT = {r".*\.(?:x|context)_block": "SingleDiTBlock"}
# family → pattern of paths in the original's network → class
ORIGINAL: Mapping[str, Mapping[str, str]] = {
    "sdxl": _SGM,
    "flux1": _FLUX, "flux2-dev": _FLUX, "flux2-klein-4b": _FLUX, "flux2-klein-9b": _FLUX,
    "sd3": _MMDIT, "sd35-medium": _MMDIT, "sd35-large": _MMDIT,
    "lumina2": {
        r"(?:layers|noise_refiner|context_refiner)\.\d+": "JointTransformerBlock",
        r"final_layer": "FinalLayer",
    },
    "z-image": {r"(?:layers|noise_refiner|context_refiner)\.\d+": "ZImageTransformerBlock"},
    "anima": {
        r"blocks\.\d+": "Block", r"x_embedder": "PatchEmbed",
        r"t_embedder\.1": "TimestepEmbedding", r"final_layer": "FinalLayer",
        r"llm_adapter\.blocks\.\d+": "LLMAdapterTransformerBlock",
    },
    "wan": {r"blocks\.\d+": "WanAttentionBlock"},
    "hunyuan-video": {
        r"double_blocks\.\d+": "MMDoubleStreamBlock", r"single_blocks\.\d+": "MMSingleStreamBlock",
    },
    "qwen-image": {r"transformer_blocks\.\d+": "QwenImageTransformerBlock"},
    "hidream-o1": {
        r"model\.language_model\.layers\.\d+": "Qwen3VLTextDecoderLayer",
        r"model\.visual\.blocks\.\d+": "Qwen3VLVisionBlock",
        r"model\.visual\.(?:merger|deepstack_merger_list\.\d+)": "Qwen3VLVisionPatchMerger",
        r"model\.visual\.patch_embed": "Qwen3VLVisionPatchEmbed",
        r"model\.x_embedder": "BottleneckPatchEmbed", r"model\.final_layer2": "FinalLayer",
        r"model\.t_embedder1": "TimestepEmbedder",
    },
}  # fmt: skip
