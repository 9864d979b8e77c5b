"""How far the judge of a run can be trusted.

The rankings are read once, shard by shard, with the samples of the same names. What is kept of them are sums over prompts, so
memory does not grow with the run.
"""

import json

from dpo_data.audit.annotation import BesideEachOther
from dpo_data.audit.answers import shards
from dpo_data.audit.families import family_of_judge
from dpo_data.audit.people import BesidePeople
from dpo_data.audit.reasons import Reasons
from dpo_data.audit.routes import Routes
from dpo_data.audit.schema import Audit, Calls
from dpo_data.audit.scores import Scores
from dpo_data.audit.transcripts import Transcripts
from dpo_data.audit.warnings import warnings
from dpo_data.config import Recipe
from dpo_data.rundir import RunDir


def audit(recipe: Recipe, run: RunDir) -> Audit | None:
    """What rankings, transcripts and people's labels tell of the judge; None before rank is complete. Raises InputError
    where the labels are bad."""
    manifest = run.stage("rank").manifest
    if manifest is None:
        return None
    judge: str = manifest["judge"]
    family = family_of_judge(judge)
    scores, transcripts, reasons, routes = Scores(), Transcripts(judge), Reasons(), Routes()
    annotators = BesideEachOther(recipe.audit.groups)
    people = BesidePeople(recipe.audit.labels) if recipe.audit.labels else None
    prompts = abstained = 0
    for shard in shards(run.stage("sample").path, run.stage("rank").shards(), family):
        told = [json.loads(text) if text != "[]" else [] for text in shard.rankings["transcript"].to_pylist()]
        ids, at = shard.rankings["completion_ids"].to_pylist(), 0
        for answers in shard.answers:
            scores.add(answers)
            some = slice(at, at := at + len(answers.scores))
            annotators.add(told[some], ids[some], shard.sources[some], answers.lengths)
        transcripts.add(told)
        routes.add(told)
        for reason in shard.rankings["abstained"].drop_null().to_pylist():
            reasons.add(reason)
            abstained += 1
        prompts += len(shard.rankings)
        if people:
            for row in shard.rankings.select(["prompt_id", "completion_ids", "scores"]).to_pylist():
                people.add(**row)
    annotation, route = annotators.annotation(), routes.route()
    return Audit(
        judge=judge,
        prompts=prompts,
        abstained=abstained / prompts if prompts else 0.0,
        abstentions=reasons.counts(),
        ties=scores.ties,
        longer_wins=scores.longer_wins,
        length=scores.length,
        own_family=scores.own_family(family),
        saturation=transcripts.saturation or scores.saturation,
        order=transcripts.order,
        members=transcripts.members,
        people=people and people.people(),
        annotation=annotation,
        route=route,
        warnings=warnings(annotation) if annotation else [],
        calls=Calls(**manifest["calls"]) if "calls" in manifest else None,
    )
