def memory_needed(manifest, batch):
    from .programs import secure_program
    from ...tuples.memory import party_bytes, dealer_bytes
    p=secure_program(manifest,f"experts.0/{batch}").plan()
    return {"party0":party_bytes(p,0)/1e6,"party1":party_bytes(p,1)/1e6,"dealer":dealer_bytes(p,2)/1e6}
