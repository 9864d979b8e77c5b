"""What answers say when they refuse, say what they are, or excuse themselves with their training: lists to read and to extend.

Each line is a regular expression that Python and RE2 both know: no look-around. Case does not matter, a space stands for any
white space (so none in square brackets), and ' for any apostrophe. Where a line is looked for is said in `boilerplate`.
"""

_REST = "[^.!?。！？\n]"
_NOT = "(can't|cannot|can not|won't|will not|am unable to|am not able to)"
_NOT_SHORT = "'m (unable|not able|not allowed) to"
_DO = (
    "(help|assist|answer|comply|fulfil|satisfy|provide|give|offer|share|discuss|create|generate|write|produce|complete|do that"
    "|do this|support|engage|participate|condone|promote|access|browse|open|view|translate|process|respond|continue|recommend"
    "|advise|tell you)"
)
_SORRY = "((I'm|I am|we're|we are)( so| very| really| truly| deeply)? (sorry|afraid)|(my )?apologies|sorry|I apologi[sz]e)"
_SORRY_ZH, _NOT_ZH = "(抱歉|对不起|不好意思)", "(不能|无法|不可以|没有?办法)"
_LACK = "(access|the (ability|capability|means)|enough|any|sufficient|real|personal)"

REFUSAL: tuple[str, ...] = (
    f"{_SORRY},? (but )?(that )?(as {_REST}{{3,40}}, )?(I|we)( {_NOT}|{_NOT_SHORT}) {_DO}",
    f"{_SORRY},? (but )?(that )?(I|we) (don't|do not) have {_LACK}",
    f"I {_NOT} (help you|help with|assist|comply|condone|fulfil|engage in|provide|answer|generate|create|discuss|participate)",
    f"I{_NOT_SHORT} (help|assist|comply|fulfil|answer|provide|generate|create|write|access|browse|view)",
    "I (must|have to|will have to|need to) (respectfully |politely )?(decline|refuse)",
    "I (respectfully|politely) (decline|refuse)",
    "I'm not comfortable (with )?(answering|providing|helping|writing|discussing|generating)",
    f"(it's|it is|it would be) (not appropriate|inappropriate|unethical|against {_REST}{{3,40}}) for me to",
    f"{_SORRY_ZH}[，,。！]* ?(但是?|不过)?[，,]?我{_REST}{{0,6}}({_NOT_ZH}|不会)",
    f"我{_NOT_ZH}(直接)?(回答|协助|帮助|帮[你您]|满足|执行|参与|支持)",
    f"我{_NOT_ZH}(直接|[为向给][您你])?(提供|生成|创建|编写|给出|讨论|访问)",
)
"""How an answer declines."""

NAMES: tuple[str, ...] = (
    *("ChatGPT", "GPT-?[345](\\.5|o)?", "Claude", "Gemini", "Bard", "LLaMA", "Mistral", "Mixtral", "Qwen", "DeepSeek", "Grok"),
    *("Copilot", "ERNIE Bot", "Kimi", "ChatGLM", "Vicuna", "Open Assistant", "Command R"),
    *("通义千问", "千问", "文心一言", "智谱清言", "豆包", "星火"),
)
MAKERS: tuple[str, ...] = (
    *("OpenAI", "Anthropic", "Google", "DeepMind", "Meta", "Mistral AI", "Alibaba", "DeepSeek", "xAI", "Microsoft", "Baidu"),
    *("Tencent", "Moonshot AI", "Zhipu", "Cohere", "LAION", "Hugging Face", "NVIDIA"),
    *("阿里", "百度", "智谱", "月之暗面", "深度求索", "字节", "谷歌"),
)
_NAME, _MAKER = f"({'|'.join(NAMES)})", f"({'|'.join(MAKERS)})"
_ADJECTIVES = "((helpful|responsible|honest|respectful|harmless|ethical|friendly|virtual|digital|mere|large|and|,) ?){0,6}"
_MADE = "(created|developed|trained|made|built|designed)"
_AI = "(AI|artificial intelligence)"
_MACHINE = (
    f"({_AI}( language| chat| text)?( |-)(model|assistant|chatbot|system|bot)|(large )?language model|virtual assistant"
    f"|{_AI}([,.;:!]| (and|I|it|that|which|without|trained|created|developed|designed|programmed|built)\\b))"
)
_ONE_ZH = f"(一[个名款位种])?({_REST}{{0,16}}的)? ?"
_MACHINE_ZH = "((人工智能|AI|大型?|智能) ?(语言)?(模型|助手|助理|聊天机器人|程序|系统)|语言模型|(人工智能|AI)[，,。我])"

IDENTITY: tuple[str, ...] = (
    f"(as|being) (just |only )?an? {_ADJECTIVES}{_MACHINE}",
    f"I('m| am) (just |only |actually |simply |merely )?an? {_ADJECTIVES}{_MACHINE}",
    f"(I('m| am)|my name is) (actually )?{_NAME}\\b",
    f"I( was|'m| am|'ve been| have been)( an? {_REST}{{1,60}})? {_MADE} by {_REST}{{0,40}}{_MAKER}",
    f"作为{_ONE_ZH}{_MACHINE_ZH}",
    f"我(只|仅仅?|就)?是{_ONE_ZH}{_MACHINE_ZH}",
    f"我(是|叫)(由)? ?({'|'.join((*NAMES, *MAKERS))})",
    f"我是?由 ?{_REST}{{0,12}}{_MAKER}",
)
"""How an answer says that it is a machine, or which one, or whose."""

_KNOWLEDGE = "(knowledge|training data|training|information|database|data)"
_NEWS = "(information|data|news|access|updates)"

CUTOFF: tuple[str, ...] = (
    f"(as of|since|until|up to|at the time of) my ((last|latest|most recent|{_KNOWLEDGE}) )*(update|cut-?off|training)",
    f"my {_KNOWLEDGE}( |-)(cut-?off|was last updated|(only )?(goes|extends|ends|covers))",
    f"my {_KNOWLEDGE} is (only )?(limited to|current (as of|up to)|based on data|up to date (as of|until))",
    "my (last|latest|most recent) (knowledge |training )?update",
    f"I (don't|do not|cannot|can't) (have |access )?(access to )?(real-time|live|up-to-date|current|the latest) {_NEWS}",
    "(截至|截止|直到)到?我的?(最后|最近|知识|训练|上次|数据)",
    "我的(知识|训练数据|数据|信息)库?(截止|截至|更新到|只到|仅限|停留)",
    "我(无法|不能|没有)(获取|访问|提供|查询)?(到)?(最新|实时)",
)
"""How an answer speaks of the day on which its knowledge ends."""
