"""Self-reward: the rubric, the judge, and what its replies mean."""

from hmx.judge.parse import parse_score
from hmx.judge.rubric import Rubric
from hmx.judge.self_judge import SelfJudge, Verdict

__all__ = ["Rubric", "SelfJudge", "Verdict", "parse_score"]
