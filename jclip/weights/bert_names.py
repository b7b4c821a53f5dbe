"""Names of the parameters of text towers of BERT's kind in transformers, which LAION-CLAP, MS-CLAP and open_clip keep too."""

from jclip.config import BertTower
from jclip.weights.layout import Rule, dense_rules, norm_rules

BUFFERS = r"(.*\.)?embeddings\.(position_ids|token_type_ids)"
"""Names in state dicts that are no parameters."""

UNUSED_POOLER = r"(.*\.)?pooler\.dense\.(weight|bias)"
"""Names of a pooler that pools nothing where the first token or the mean is asked for, as MS-CLAP and open_clip keep it."""


def bert_rules(tower: BertTower, ours: str, at: str) -> list[Rule]:
    """A rule for every parameter of a tower; its names begin with `at`."""
    block, theirs = f"{ours}/blocks", f"{at}encoder.layer.{{}}"
    dense = [(f"attn/{name[0]}", f"attention.self.{name}") for name in ("query", "key", "value")]
    dense += [("attn/out", "attention.output.dense"), ("mlp/fc1", "intermediate.dense"), ("mlp/fc2", "output.dense")]
    return [
        Rule(f"{ours}/token_embed", f"{at}embeddings.word_embeddings.weight"),
        Rule(f"{ours}/pos_embed", f"{at}embeddings.position_embeddings.weight"),
        Rule(f"{ours}/type_embed", f"{at}embeddings.token_type_embeddings.weight"),
        *norm_rules(f"{ours}/embed_norm", f"{at}embeddings.LayerNorm"),
        *norm_rules(f"{block}/norm1", f"{theirs}.attention.output.LayerNorm"),
        *norm_rules(f"{block}/norm2", f"{theirs}.output.LayerNorm"),
        *(rule for a, b in dense for rule in dense_rules(f"{block}/{a}", f"{theirs}.{b}")),
        *(dense_rules(f"{ours}/pooler", f"{at}pooler.dense") if tower.pool == "pooler" else []),
    ]
