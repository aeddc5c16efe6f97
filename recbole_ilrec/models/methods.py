"""The published methods by name: each is the one generative recommender under the settings of its YAML."""

from recbole_ilrec.models.model import GenerativeRecommender


class ILRec(GenerativeRecommender):
    """ILRec: self-hard negatives from intermediate layers (Eq. 2-12)."""


class LCRec(GenerativeRecommender):
    """LC-Rec: supervised fine-tuning on semantic IDs (Eq. 1); its YAML sets ``objective: sft``."""


class BIGRec(GenerativeRecommender):
    """BIGRec: supervised fine-tuning on titles (Eq. 1); its YAML sets ``paradigm: bigrec``."""


class DPO(GenerativeRecommender):
    """Supervised fine-tuning, then direct preference optimisation; its YAML sets ``objective: dpo``."""


class SDPO(GenerativeRecommender):
    """S-DPO: supervised fine-tuning, then one chosen against several random items; ``objective: sdpo``."""


class RosePO(GenerativeRecommender):
    """RosePO: supervised fine-tuning, then smoothed DPO against the model's own wrong items; ``objective: rosepo``."""


class SPRec(GenerativeRecommender):
    """SPRec: rounds of fine-tuning and DPO against what the model itself recommended before; ``objective: dpo``."""
