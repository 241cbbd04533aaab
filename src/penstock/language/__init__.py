"""What every language model needs above its engine: files and headers, tokenizers, chat templates, stop strings,
parsers of tool calls and reasoning, grammars, and the memory a model takes. Knows neither engines nor servers; reads
files when told to, and does nothing else with the outside world.
"""
