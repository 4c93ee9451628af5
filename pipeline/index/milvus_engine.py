"""The milvus engine: Milvus proposes candidates, our own formulas score them. (Being built.)"""
