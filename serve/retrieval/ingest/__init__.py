"""Document ingestion: conversion in worker processes, splitting, embedding. Parsers of each format are in `formats`.

What is stored and searched is in `serve.retrieval.store`; the HTTP API for documents is `serve.gateway.documents_api`.
"""
