"""RecBole's own models: trained, compared with, and frozen as the reward of Eq. 10."""
