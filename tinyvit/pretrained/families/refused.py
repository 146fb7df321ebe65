"""Models that are no ViT of ours, told by their names, so that a sentence says so and not a list of missing arrays."""

from __future__ import annotations

from tinyvit.pretrained.containers import WeightsError
from tinyvit.pretrained.families.contents import Contents

CLIP = "which its own library opens"
OTHERS = {  # a regular expression of names in the file: what they show; the first that is there speaks
    r".*(rope_embed\.periods|storage_tokens)": "a DINOv3 model, which turns queries and keys by their positions (RoPE)",
    r".*\.rope\.|.*freqs_cis|.*attn\.qkv\.bias_mask": "a ViT with rotary positions",
    r"(.*/)?conv_root/": "a hybrid, a ResNet before a ViT",
    r"(.*\.)?patch_embed\.backbone\.": "a hybrid, a convolutional network before a ViT",
    r"MAPHead_0/|(.*/)?img/MAPHead_0/|attn_pool\.|vision_model\.head\.probe": (
        "pooled by attention (the image tower of SigLIP)"
    ),
    r"(module\.)?visual\.": f"an image tower of CLIP, {CLIP}",
    r"(vision_model\.|clip\.vision_model\.)": f"an image tower of CLIP or SigLIP in Hugging Face's layout, {CLIP}",
    r"norm_pre\.": f"normed before its first layer, as an image tower of CLIP is, {CLIP}",
    r"blocks\.0\.(attn\.in_proj|in_proj|mlp_out_proj|attns\.)": "a ViT of parallel blocks",
    r".*\.lambda_q1": "a ViT of differential attention",
    r"blocks\.0\.attn\.(q_norm|k_norm)\.": "a ViT that norms queries and keys",
    r"blocks\.0\.attn\.(norm|scale_norm)\.|blocks\.0\.mlp\.norm\.": "a ViT that norms inside attention or the FFN",
    r"encoder\.layer\.0\.attention\.attention\.relative_position": "BEiT, whose positions are relative",
    r"blocks\.0\.attn\.(relative_position|rel_pos)|.*rel_pos_bias": "a ViT with relative positions",
    r"blocks\.0\.attn\.q_bias": "BEiT or EVA, whose keys alone have no bias",
    r"encoder\.layers\.encoder_layer_0\.": "torchvision's ViT, whose names it does not read: timm has such models too",
    r"(encoder|decoder)\.(layers|blocks)\.|mask_decoder|decoder_": "an encoder-decoder, or one of another kind",
    r"layers\.0\.blocks\.0\.|layers\.0\.downsample": "a Swin Transformer, or another of several stages",
    r"encoder\.block\.|conv1\.|stem\.|features\.0|layer1\.": "a convolutional network",
    r"(text_model|model)\.(layers|embed_tokens)|transformer\.h\.|bert\.|embeddings\.word": "a language model",
}


def refuse_others(contents: Contents) -> None:
    """Refuse what is recognised and cannot be opened.

    Raises:
        WeightsError: it is one of them.
    """
    for pattern, what in OTHERS.items():
        if contents.has(pattern):
            raise WeightsError(f"{contents.weights.path} is {what}: tinyvit has no such model")
