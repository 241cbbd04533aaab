"""Rewards that come back for decisions: the token that an answer carries, and the bodies of `POST …/feedback`.

Pure, and the same in routers and controller.
"""
