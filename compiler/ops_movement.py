"""Facts of ops that compute nothing: views, data movement, creation, and random numbers."""

from __future__ import annotations

from .ops import OpFacts

_VIEWS = """
_conj _neg_view _nested_view_from_buffer _reshape_alias _unsafe_view adjoint alias as_strided broadcast_to chunk conj
detach diagonal dsplit expand expand_as hsplit imag lift_fresh mH mT matrix_H moveaxis movedim narrow numpy_T permute
ravel real resolve_conj resolve_neg select slice split split_with_sizes squeeze swapaxes swapdims sym_size t
tensor_split transpose unbind unflatten unfold unsafe_chunk unsafe_split unsafe_split_with_sizes unsqueeze view
view_as view_as_complex view_as_real vsplit
"""

_MOVEMENT = """
_assert_async _assert_scalar _assert_tensor_metadata _cast_Byte _cast_Char _cast_Double _cast_Float _cast_Half
_cast_Int _cast_Long _cast_Short _chunk_cat _conj_copy _convert_weight_to_int4pack _convert_weight_to_int4pack_for_cpu
_copy_from _copy_from_and_resize _cudnn_rnn_flatten_weight _dyn_quant_pack_4bit_weight _fill_mem_eff_dropout_mask
_functional_assert_async _functional_assert_scalar _functional_sym_constrain_range _fused_sdp_choice
_jagged_to_padded_dense_forward _local_scalar_dense _neg_view_copy _nested_from_padded _nested_tensor_from_mask
_nested_tensor_from_tensor_list _pack_padded_sequence _pad_circular _pad_packed_sequence
_padded_dense_to_jagged_forward _pin_memory _reshape_alias_copy _resize_output _shape_as_tensor _stack _to_copy
_unsafe_index _unsafe_masked_index alias_copy argwhere as_strided_copy as_strided_scatter atleast_1d atleast_2d
atleast_3d block_diag broadcast_tensors cartesian_prod cat channel_shuffle clone col2im column_stack combinations
concat concatenate constant_pad_nd contiguous copy detach_copy diag diag_embed diagflat diagonal_backward
diagonal_copy diagonal_scatter dim dstack embedding embedding_renorm expand_copy fill_diagonal flatten flip fliplr
flipud from_file gather hstack im2col index index_copy index_fill index_select index_select_backward int_repr
is_complex is_contiguous is_floating_point is_pinned is_same_size item lift lift_fresh_copy masked_scatter
masked_select masked_select_backward max_unpool2d max_unpool3d meshgrid narrow_copy native_channel_shuffle
nested_to_padded_tensor nonzero nonzero_numpy nonzero_static numel one_hot pad pad_sequence permute_copy pin_memory
pixel_shuffle pixel_unshuffle positive q_scale q_zero_point record_stream reflection_pad1d reflection_pad2d
reflection_pad3d repeat repeat_interleave replication_pad1d replication_pad2d replication_pad3d reshape reshape_as
resize resize_as roll rot90 row_stack select_backward select_copy select_scatter set size slice_backward slice_copy
slice_scatter split_copy split_with_sizes_copy squeeze_copy stack storage_offset stride sym_constrain_range
sym_constrain_range_for_size sym_numel sym_storage_offset sym_stride t_copy take take_along_dim tile to to_dense
to_padded_tensor to_sparse transpose_copy tril triu type_as unbind_copy unflatten_dense_tensors unfold_backward
unfold_copy unsqueeze_copy value_selecting_reduction_backward view_as_complex_copy view_as_real_copy view_copy vstack
"""

_CREATION = """
_efficientzerotensor _empty_affine_quantized _empty_per_channel_affine_quantized arange bartlett_window
blackman_window empty empty_like empty_permuted empty_quantized empty_strided eye fill full full_like hamming_window
hann_window kaiser_window linspace logspace new_empty new_empty_strided new_full new_ones new_zeros ones ones_like
range scalar_tensor tril_indices triu_indices zero zeros zeros_like
"""

_RANDOM = """
_cudnn_init_dropout_state _philox_normal _philox_uniform _sample_dirichlet _standard_gamma bernoulli binomial cauchy
exponential geometric log_normal multinomial normal normal_functional poisson rand rand_like randint randint_like
randn randn_like random randperm uniform
"""

FACTS: dict[str, OpFacts] = {
    **{f"aten.{name}": OpFacts("view") for name in _VIEWS.split()},
    **{f"aten.{name}": OpFacts("data movement") for name in _MOVEMENT.split()},
    **{f"aten.{name}": OpFacts("creation") for name in _CREATION.split()},
    **{f"aten.{name}": OpFacts("random") for name in _RANDOM.split()},
    "aten.where.default": OpFacts("data movement"),
    # What the recorder notes beside dispatched ops: a number that autograd keeps, the state of the random generator.
    "neaptide.saved_number": OpFacts("creation"),
    "neaptide.random_state": OpFacts("creation"),
    "profiler._record_function_enter_new": OpFacts("data movement"),
    "profiler._record_function_exit": OpFacts("data movement"),
    "prim.device": OpFacts("view"),
    "prim.layout": OpFacts("view"),
}
