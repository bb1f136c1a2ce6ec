import jax, jax.numpy as jnp
def attention(q_BTNH,k_BSKH,v_BSKH,*,segment_ids_BT=None,window=None,causal=True,scale=None,impl="auto"):
    B,T,N,H=q_BTNH.shape; K=k_BSKH.shape[2]
    k=jnp.repeat(k_BSKH,N//K,2); v=jnp.repeat(v_BSKH,N//K,2)
    s=jnp.einsum("btnh,bsnh->bnts",q_BTNH*H**-.5,k,preferred_element_type=jnp.float32)
    i=jnp.arange(T)[:,None]; j=jnp.arange(T)[None]
    m=(i>=j)
    if window is not None: m&=(i-j<window)
    m=m[None,None]
    if segment_ids_BT is not None: m=m&(segment_ids_BT[:,None,:,None]==segment_ids_BT[:,None,None,:])
    s=jnp.where(m,s,-1e30)
    return jnp.einsum("bnts,bsnh->btnh",jax.nn.softmax(s,-1).astype(v.dtype),v)
