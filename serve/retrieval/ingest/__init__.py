"""From a file to chunks in the store: conversion in worker processes, splitting, embedding. ConversionWorkers are in `formats`."""
