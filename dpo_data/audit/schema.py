"""What the audit of a judge holds: every key, its unit, and when it is null. Shares are 0–1.

What a judge has not is null, never 0.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Part(BaseModel):
    """The base of every table of report.json: an unknown key is an error."""

    model_config = ConfigDict(extra="forbid")


class Figure(Part):
    """A share or a mean, over all cases of all prompts. The interval comes from resampling prompts; it is too narrow for fewer
    than some thirty of them, and has no width where every case is alike."""

    value: float = Field(description="the figure itself")
    expected: float | None = Field(description="what it would be without bias; null where there is no such value")
    low: float | None = Field(description="lower end of its 95 % interval; null for fewer than two prompts")
    high: float | None = Field(description="upper end of its 95 % interval; null for fewer than two prompts")
    count: int = Field(description="the cases that it is over")
    prompts: int = Field(description="the prompts that they come from")


class Calls(Part):
    calls: int = Field(description="answers that the judges' models gave and that this run paid for")
    prompt_tokens: int = Field(description="tokens that they read")
    cached_tokens: int | None = Field(description="those of them that the server had read before; null where none told")
    completion_tokens: int = Field(description="tokens that they wrote")
    cost: float = Field(description="in the unit of the recipe's prices; 0 where it has none")


class Saturation(Part):
    mark: Literal["top", "highest"] = Field(
        description="top: the best that could be given, in every aspect; highest: the best score seen, where no scale is known"
    )
    score: float | None = Field(description="that score; null for top, where the marks of all aspects are at their own")
    share: float = Field(description="share of the judged answers that have it")
    count: int = Field(description="the judged answers")


class OwnFamily(Part):
    family: str = Field(description="the judge's model without organisation, version and size, as qwen")
    wins: Figure = Field(
        description="share of the twos of an answer of that family and one of another, scored apart, that the family's own wins"
    )


class Order(Part):
    """What the order in which a judge is shown answers does to what it says."""

    judge: str = Field(description="who; a panel's or cascade's members one by one")
    shows: Literal["two", "list"] = Field(description="two answers at a time, or all in one list")
    asked: int = Field(description="comparisons, each in both orders, or lists")
    unread: int = Field(description="those of them that decided nothing, since an answer could not be read")
    flipped: Figure | None = Field(
        description="share of twos on which the verdict, or their order in the list, is not the same when they are shown in "
        "another order; null where nothing was shown twice"
    )
    first_wins: Figure | None = Field(
        description="two: share of verdicts with a winner that name the answer shown first; list: how often the one shown "
        "first is ranked best, an equal share for those who are best together"
    )
    cycles: Figure | None = Field(
        description="share of triples, all three twos decided, in which A beats B, B beats C and C beats A; null for lists"
    )


class Members(Part):
    """Two judges of a panel or cascade, over the prompts that both ranked."""

    judges: tuple[str, str] = Field(description="their names")
    agreement: Figure | None = Field(description="mean Kendall τ-b of their scores within prompts, −1 to 1; 0 is chance")
    opposite: Figure | None = Field(description="share of the twos that both score apart which they order oppositely")
    contradicted: Figure | None = Field(
        description="share of the comparisons that a pairwise judge decided, scored apart by a listwise one, which that one "
        "orders the other way; null unless the judges are such two"
    )


class Agreement(Part):
    """Verdicts on twos of answers are: the one, the other, or a tie. Each two counts half in either direction."""

    tau: Figure | None = Field(description="mean Kendall τ-b within prompts, −1 to 1; null where somebody ties all")
    kappa: Figure | None = Field(description="Cohen's κ of the verdicts on twos: agreement beyond chance, at most 1")
    alpha: Figure | None = Field(description="Krippendorff's α of the verdicts on twos, ordinal, at most 1")


class People(Part):
    labels: str = Field(description="the file, as the recipe names it")
    annotators: int = Field(description="who labelled")
    prompts: int = Field(description="prompts of this run with labels")
    unknown_prompts: int = Field(description="labelled prompts that this run did not rank, left out")
    unknown_completions: int = Field(description="labelled answers that such a prompt has not, left out")
    judge: Agreement = Field(description="the judge with each annotator")
    people: Agreement | None = Field(description="the annotators with each other; null unless two labelled one prompt")


class Annotator(Part):
    """One annotator's answers. Agreement is with each other annotator on the prompts that both answered."""

    name: str = Field(description="who, as the transcripts name them")
    submitted: int = Field(description="answers given")
    discarded: int = Field(description="answers withheld: discarded or skipped")
    agreement: Agreement | None = Field(description="with the other annotators; null where no other answered the same prompts")
    first_best: Figure | None = Field(
        description="how often the answer shown first is put best, an equal share for those who are best together; null where "
        "nothing was compared"
    )
    seconds: float | None = Field(description="median seconds an answer, discarded ones aside; null where no time is known")
    hasty: Figure | None = Field(description="share of the answers with a known time that took less than 2 s")
    prefilled: Figure | None = Field(
        description="share of answers equal to the suggestion that was shown; null where none was shown"
    )
    longer_wins: Figure | None = Field(
        description="share of the twos that the annotator puts apart and that differ in length, of which the longer wins"
    )


class Two(Part):
    annotators: tuple[str, str] = Field(description="two who answered the same prompts")
    kappa: Figure | None = Field(description="Cohen's κ of their verdicts on twos of answers; null where neither varies")


class Group(Part):
    name: str = Field(description="as the recipe names it under [audit.groups]")
    annotators: int = Field(description="those of the group who answered")
    agreement: Agreement | None = Field(description="the group's annotators with each other; null unless two met")
    longer_wins: Figure | None = Field(description="share of twos that differ in length of which the longer wins")


class Apart(Part):
    """Two groups of annotators."""

    groups: tuple[str, str] = Field(description="their names")
    agreement: Agreement | None = Field(description="each annotator of the one with each of the other; null where none met")
    less: Figure | None = Field(
        description="by how much the mean Kendall τ-b between the two falls short of the geometric mean of that within each: "
        "above 0, they prefer different answers; null unless all three are known"
    )
    longer_wins: Figure | None = Field(
        description="share of twos of which the longer wins, in the first group less in the second; null unless both are known"
    )


class Annotation(Part):
    """What annotators said, from the transcripts."""

    prompts: int = Field(description="prompts that somebody answered")
    several: int = Field(description="those of them that two or more answered")
    agreement: Agreement | None = Field(description="the annotators with each other; null where no two answered one prompt")
    w: Figure | None = Field(
        description="mean Kendall's W within prompts, corrected for ties, over the annotators who compared all answers of the "
        "prompt, 0 to 1; null where no two did"
    )
    annotators: list[Annotator] = Field(description="by name")
    twos: list[Two] = Field(description="each two annotators who answered the same prompts")
    sources: dict[str, Agreement] = Field(
        description="the agreement by the prompts' source, its line aside; from the fiftieth source on, all others together"
    )
    groups: list[Group] = Field(description="the groups of [audit.groups]")
    apart: list[Apart] = Field(description="each two of these groups")


class Route(Part):
    """The first and the second judge of a cascade, by the reason why the second was asked."""

    judges: tuple[str, str] = Field(description="the first, and the second")
    people: bool = Field(description="whether annotators are behind the second")
    calibration: Agreement | None = Field(description="over a random slice of all prompts; null where there is none")
    unsure: Agreement | None = Field(
        description="over the prompts that the first was not sure of, which say nothing of the others; null for none"
    )


class Audit(Part):
    """How far the judge can be trusted, as far as its rankings, its transcripts and people's labels tell."""

    judge: str = Field(description="who ranked")
    prompts: int = Field(description="prompts that it was given")
    abstained: float = Field(description="share of them on which it abstained")
    abstentions: dict[str, int] = Field(
        description="how often it abstained, by reason, the most common first; N stands for a number, X for an answer's name, "
        "… for a text"
    )
    ties: Figure | None = Field(description="share of equal scores among all twos of judged answers to one prompt")
    longer_wins: Figure | None = Field(
        description="share of the twos that differ in score and in length, thinking aside, of which the longer wins"
    )
    length: Figure | None = Field(description="mean Kendall τ-b of score and length within prompts, −1 to 1")
    own_family: OwnFamily | None = Field(
        description="how answers of the judge's own family fare; null unless it is known, and others answered the same prompts"
    )
    saturation: Saturation | None = Field(description="how many answers have the best mark; null where nothing was judged")
    order: list[Order] = Field(description="a judge each that is shown several answers; empty for one that scores them alone")
    members: list[Members] = Field(description="each two judges of a panel or cascade; empty for a judge alone")
    people: People | None = Field(description="judge and people; null without labels")
    annotation: Annotation | None = Field(description="the annotators that ranked; null where none did")
    route: Route | None = Field(description="the judges of a cascade that sends whole prompts on; null for any other judge")
    warnings: list[str] = Field(description="what to look at before the annotators' answers are used, a sentence each")
    calls: Calls | None = Field(description="what the judging took; null where it was not counted")
