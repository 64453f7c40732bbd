#include "torchscript/operators.h"

#include <sstream>
#include <string>
#include <unordered_set>

namespace pyinv::torchscript {
namespace {

// Pure computation on tensors, numbers, strings, lists, tuples and dictionaries. Not listed, and so
// refused, as is every operator that a later torch adds:
//   - files and processes: from_file, save, rpc_async, PythonOp, fork, Print;
//   - state of the process: manual_seed, Generator, set_grad_enabled, _cufft_set_plan_cache_...;
//   - memory without bounds checks: set_, _reshape_alias, embedding_bag, segment_reduce;
//   - one library's own operators (cudnn_..., mkldnn_..., fbgemm_...), sparse, quantized and nested
//     tensors, and everything of other namespaces.
constexpr const char* kAten = R"(
Bool Complex ComplexImplicit Float FloatImplicit Int IntImplicit ScalarImplicit Size __and__
__contains__ __derive_index __getitem__ __iand__ __ilshift__ __interpolate __ior__ __irshift__
__is__ __isnot__ __ixor__ __lshift__ __not__ __or__ __range_length __round_to_zero_floordiv
__rshift__ __upsample __upsample_bilinear __upsample_nearest __xor__ _adaptive_avg_pool2d
_adaptive_avg_pool2d_backward _adaptive_avg_pool3d _adaptive_avg_pool3d_backward _add_relu
_addmm_activation _aminmax _assert_async _assert_scalar _assert_tensor_metadata _cast_Byte
_cast_Char _cast_Double _cast_Float _cast_Half _cast_Int _cast_Long _cast_Short _cdist_backward
_cdist_forward _conj _conj_physical _convolution _convolution_mode _dim_arange _euclidean_dist
_fft_c2c _fft_c2r _fft_r2c _fused_rms_norm _get_cpu_capability _get_tracing_state
_grad_sum_to_size _infer_size _is_all_true _is_any_true _is_zerotensor _linalg_check_errors
_linalg_det _linalg_eigh _linalg_eigvals _linalg_slogdet _linalg_solve_ex _linalg_svd
_list_to_tensor _local_scalar_dense _log_softmax _log_softmax_backward_data _logcumsumexp
_masked_softmax _native_batch_norm_legit _native_batch_norm_legit_functional
_native_batch_norm_legit_no_training _native_multi_head_attention _neg_view
_nested_tensor_from_mask _nested_tensor_from_mask_left_aligned _pad_circular _pad_enum
_pdist_forward _prelu_kernel _prelu_kernel_backward _reshape_from_tensor _safe_softmax
_sample_dirichlet _scaled_dot_product_attention_math _scaled_dot_product_efficient_attention
_scaled_dot_product_flash_attention _scaled_dot_product_flash_attention_for_cpu _set_item
_shape_as_tensor _size_if_not_equal _softmax _softmax_backward_data _stack _standard_gamma
_tensor_to_list _to_copy _transform_bias_rescale_qkv _transformer_encoder_layer_fwd _trilinear
_unique _unique2 _unsafe_index _unsafe_index_put _unsafe_view _unwrap_optional
_upsample_bicubic2d_aa _upsample_bicubic2d_aa_backward _upsample_bilinear2d_aa
_upsample_bilinear2d_aa_backward _upsample_lanczos2d_aa _upsample_lanczos2d_aa_backward
_upsample_nearest_exact1d _upsample_nearest_exact1d_backward _upsample_nearest_exact2d
_upsample_nearest_exact2d_backward _upsample_nearest_exact3d _upsample_nearest_exact3d_backward
_weight_norm _weight_norm_interface _weight_norm_interface_backward abs absolute acos acosh
adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_avg_pool3d_backward
adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool2d_backward adaptive_max_pool3d
adaptive_max_pool3d_backward add addbmm addcdiv addcmul addmm addmv addr adjoint
affine_grid_generator affine_grid_generator_backward alias alias_copy all allclose alpha_dropout
amax amin aminmax angle any append arange arccos arccosh arcsin arcsinh arctan arctan2 arctanh
argmax argmin argsort argwhere as_strided as_strided_copy as_strided_scatter as_tensor asin asinh
atan atan2 atanh atleast_1d atleast_2d atleast_3d avg_pool1d avg_pool2d avg_pool2d_backward
avg_pool3d avg_pool3d_backward baddbmm bartlett_window batch_norm bernoulli bilinear bin
binary_cross_entropy binary_cross_entropy_backward binary_cross_entropy_with_logits bincount
binomial bitwise_and bitwise_left_shift bitwise_not bitwise_or bitwise_right_shift bitwise_xor
blackman_window block_diag bmm broadcast_shapes broadcast_tensors broadcast_to bucketize can_cast
capitalize cartesian_prod cat cauchy ccol_indices cdist ceil celu center chain_matmul chalf
channel_shuffle cholesky cholesky_inverse cholesky_solve chr chunk clamp clamp_max clamp_min clear
clip clone coalesce col2im col_indices column_stack combinations complex concat concatenate conj
conj_physical constant_pad_nd contiguous conv1d conv2d conv3d conv_depthwise3d conv_tbc
conv_tbc_backward conv_transpose1d conv_transpose2d conv_transpose3d convolution
convolution_backward copy copysign corrcoef cos cosh cosine_embedding_loss cosine_similarity count
count_nonzero cov cpu cross cross_entropy_loss crow_indices cuda cummax cummaxmin_backward cummin
cumprod cumprod_backward cumsum cumulative_trapezoid data deg2rad degrees det detach detach_copy
device diag diag_embed diagflat diagonal diagonal_backward diagonal_copy diagonal_scatter dict
diff digamma dim dist dist_backward div divide divmod dot dropout dsplit dstack einsum
element_size elu elu_backward embedding embedding_backward embedding_dense_backward empty
empty_like empty_permuted empty_strided endswith eq equal erf erfc erfinv exp exp2 expand
expand_as expand_copy expandtabs expm1 exponential extend eye fabs factorial feature_alpha_dropout
feature_dropout fft_fft fft_fft2 fft_fftfreq fft_fftn fft_fftshift fft_hfft fft_hfft2 fft_hfftn
fft_ifft fft_ifft2 fft_ifftn fft_ifftshift fft_ihfft fft_ihfft2 fft_ihfftn fft_irfft fft_irfft2
fft_irfftn fft_rfft fft_rfft2 fft_rfftfreq fft_rfftn fill fill_diagonal_ find fix flatten
flatten_dense_tensors flip fliplr flipud float_power floor floor_divide floordiv fmax fmin fmod
format frac fractional_max_pool2d fractional_max_pool2d_backward fractional_max_pool3d
fractional_max_pool3d_backward frexp frobenius_norm full full_like gamma gather gather_backward
gcd ge gelu gelu_backward geometric geqrf ger get get_device glu glu_backward glu_backward_jvp
glu_jvp grad gradient greater greater_equal grid_sampler grid_sampler_2d grid_sampler_2d_backward
grid_sampler_3d grid_sampler_3d_backward group_norm gru gru_cell gt hamming_window hann_window
hardshrink hardshrink_backward hardsigmoid hardsigmoid_backward hardswish hardswish_backward
hardtanh hardtanh_backward has_torch_function hash heaviside hex hinge_embedding_loss histc
histogram histogramdd hsplit hstack huber_loss huber_loss_backward hypot i0 igamma igammac im2col
imag index index_add index_copy index_fill index_put index_reduce index_select
index_select_backward indices initial_seed inner insert instance_norm inverse
is_autocast_cpu_enabled is_autocast_enabled is_complex is_conj is_contiguous is_floating_point
is_grad_enabled is_inference is_neg is_non_overlapping_and_dense is_nonzero is_same_size
is_scripting is_signed is_strides_like_format isalnum isalpha isclose isdecimal isdigit isfinite
isidentifier isin isinf islower isnan isneginf isnumeric isposinf isprintable isreal isspace istft
istitle isupper item items join kaiser_window keys kl_div kron kthvalue l1_loss layer_norm lcm
ldexp le leaky_relu leaky_relu_backward len lerp less less_equal lgamma lift lift_fresh
lift_fresh_copy linalg__powsum linalg_cholesky linalg_cholesky_ex linalg_cond linalg_cross
linalg_det linalg_diagonal linalg_eig linalg_eigh linalg_eigvals linalg_eigvalsh
linalg_householder_product linalg_inv linalg_inv_ex linalg_ldl_factor linalg_ldl_factor_ex
linalg_ldl_solve linalg_lstsq linalg_lu linalg_lu_factor linalg_lu_factor_ex linalg_lu_solve
linalg_matmul linalg_matrix_exp linalg_matrix_norm linalg_matrix_power linalg_matrix_rank
linalg_multi_dot linalg_norm linalg_pinv linalg_qr linalg_slogdet linalg_solve linalg_solve_ex
linalg_solve_triangular linalg_svd linalg_svdvals linalg_tensorinv linalg_tensorsolve
linalg_vander linalg_vecdot linalg_vector_norm linear linear_backward linspace list ljust log
log10 log1p log2 log_normal log_sigmoid log_sigmoid_backward log_sigmoid_forward log_softmax
logaddexp logaddexp2 logcumsumexp logdet logical_and logical_not logical_or logical_xor logit
logit_backward logspace logsumexp lower lstm lstm_cell lstrip lt lu_solve lu_unpack mH mT
margin_ranking_loss masked_fill masked_scatter masked_scatter_backward masked_select
masked_select_backward mathremainder matmul matmul_backward matrix_H matrix_exp
matrix_exp_backward matrix_power max max_pool1d max_pool1d_with_indices max_pool2d
max_pool2d_backward max_pool2d_with_indices max_pool2d_with_indices_backward max_pool3d
max_pool3d_with_indices max_pool3d_with_indices_backward max_unpool2d max_unpool3d maximum mean
median meshgrid min minimum mish mish_backward mm mode modf moveaxis movedim mse_loss
mse_loss_backward msort mul multi_margin_loss multi_margin_loss_backward multilabel_margin_loss
multilabel_margin_loss_backward multilabel_margin_loss_forward multinomial multiply mv mvlgamma
nan_to_num nanmean nanmedian nanquantile nansum narrow narrow_copy native_batch_norm
native_batch_norm_backward native_channel_shuffle native_dropout native_dropout_backward
native_group_norm native_group_norm_backward native_layer_norm native_layer_norm_backward
native_norm ne neg negative new_empty new_empty_strided new_full new_ones new_zeros nextafter
nll_loss nll_loss2d nll_loss2d_backward nll_loss2d_forward nll_loss_backward nll_loss_forward
nll_loss_nd nonzero nonzero_numpy nonzero_static norm norm_except_dim normal normal_functional
not_equal nuclear_norm numel numpy_T oct one_hot ones ones_like ord orgqr ormqr outer pad
pad_sequence pairwise_distance partition pdist permute permute_copy pinverse pixel_shuffle
pixel_unshuffle poisson poisson_nll_loss polar polygamma pop popitem positive pow prelu prod
promote_types put qr quantile rad2deg radians rand rand_like randint randint_like randn randn_like
random randperm range ravel real reciprocal reflection_pad1d reflection_pad1d_backward
reflection_pad2d reflection_pad2d_backward reflection_pad3d reflection_pad3d_backward relu relu6
remainder remove renorm repeat repeat_interleave replace replication_pad1d
replication_pad1d_backward replication_pad2d replication_pad2d_backward replication_pad3d
replication_pad3d_backward reshape reshape_as resize resize_as resolve_conj resolve_neg
result_type reverse rfind rindex rjust rms_norm rnn_relu rnn_relu_cell rnn_tanh rnn_tanh_cell roll
rot90 round row_indices row_stack rpartition rrelu rrelu_with_noise rrelu_with_noise_backward
rrelu_with_noise_functional rsplit rsqrt rstrip rsub scalar_tensor scaled_dot_product_attention
scatter scatter_add scatter_reduce searchsorted seed select select_backward select_copy
select_scatter selu setdefault sgn sigmoid sigmoid_backward sign signbit silu silu_backward sin
sinc sinh size slice slice_backward slice_copy slice_inverse slice_scatter slogdet slow_conv3d
slow_conv3d_forward slow_conv_dilated2d slow_conv_dilated3d slow_conv_transpose2d
slow_conv_transpose3d smooth_l1_loss smooth_l1_loss_backward soft_margin_loss
soft_margin_loss_backward softmax softplus softplus_backward softshrink softshrink_backward sort
sorted special_airy_ai special_bessel_j0 special_bessel_j1 special_bessel_y0 special_bessel_y1
special_chebyshev_polynomial_t special_chebyshev_polynomial_u special_chebyshev_polynomial_v
special_chebyshev_polynomial_w special_digamma special_entr special_erf special_erfc special_erfcx
special_erfinv special_exp2 special_expit special_expm1 special_gammainc special_gammaincc
special_gammaln special_hermite_polynomial_h special_hermite_polynomial_he special_i0 special_i0e
special_i1 special_i1e special_laguerre_polynomial_l special_legendre_polynomial_p special_log1p
special_log_ndtr special_log_softmax special_logit special_logsumexp special_modified_bessel_i0
special_modified_bessel_i1 special_modified_bessel_k0 special_modified_bessel_k1
special_multigammaln special_ndtr special_ndtri special_polygamma special_psi special_round
special_scaled_modified_bessel_k0 special_scaled_modified_bessel_k1
special_shifted_chebyshev_polynomial_t special_shifted_chebyshev_polynomial_u
special_shifted_chebyshev_polynomial_v special_shifted_chebyshev_polynomial_w special_sinc
special_softmax special_spherical_bessel_j0 special_xlog1py special_xlogy special_zeta split
split_copy split_with_sizes split_with_sizes_copy splitlines sqrt square squeeze squeeze_copy
stack startswith std std_mean stft storage_offset str stride strip sub subtract sum sum_to_size
svd swapaxes swapcase swapdims sym_is_contiguous sym_numel sym_size sym_storage_offset sym_stride
t t_copy take take_along_dim tan tanh tanh_backward tensor tensor_split tensordot thnn_conv2d
threshold threshold_backward tile title to to_dense to_dense_backward to_padded_tensor topk trace
trace_backward transpose transpose_copy trapezoid trapz triangular_solve tril tril_indices
triplet_margin_loss triu triu_indices true_divide trunc type_as unbind unbind_copy unflatten
unflatten_dense_tensors unfold unfold_backward unfold_copy uniform unique_consecutive unique_dim
unique_dim_consecutive unsafe_chunk unsafe_split unsafe_split_with_sizes unsqueeze unsqueeze_copy
update upper upsample_bicubic2d upsample_bicubic2d_backward upsample_bilinear2d
upsample_bilinear2d_backward upsample_linear1d upsample_linear1d_backward upsample_nearest1d
upsample_nearest1d_backward upsample_nearest2d upsample_nearest2d_backward upsample_nearest3d
upsample_nearest3d_backward upsample_trilinear3d upsample_trilinear3d_backward
value_selecting_reduction_backward values vander var var_mean vdot view view_as view_as_complex
view_as_complex_copy view_as_real view_as_real_copy view_copy vsplit vstack warn where xlogy zero
zeros zeros_like zfill
)";
// What torch's compiler makes of Python's syntax, and queries of a tensor's properties.
constexpr const char* kPrim = R"(
AutogradZero BroadcastSizes Constant ConstantChunk DictConstruct DictIndex EnumName EnumValue
FusedConcat GetAttr If ImplicitTensorToNum ListConstruct ListUnpack Loop NumToTensor
RaiseException StringIndex TupleConstruct TupleIndex TupleSlice TupleUnpack Uninitialized
VarConcat VarStack abs annotate data device dtype grad index is_cpu is_cuda is_ipu is_maia is_meta
is_mkldnn is_mps is_mtia is_nested is_quantized is_sparse is_sparse_csr is_vulkan is_xla is_xpu
isinstance itemsize layout max min name nbytes rangelist requires_grad tolist type unchecked_cast
unchecked_unwrap_optional
)";

using Names = std::unordered_set<std::string>;

Names split(const char* text) {
  std::istringstream words(text);
  Names names;
  for (std::string word; words >> word;) names.insert(word);
  return names;
}

}  // namespace

bool allows(std::string_view name) {
  static const Names aten = split(kAten), prim = split(kPrim);
  const size_t at = name.find("::");
  if (at == std::string_view::npos) return false;
  const std::string_view space = name.substr(0, at);
  std::string operation(name.substr(at + 2));
  if (space == "prim") return prim.contains(operation);
  if (space != "aten") return false;
  if (aten.contains(operation)) return true;
  if (operation.empty() || operation.back() != '_') return false;
  operation.pop_back();
  return aten.contains(operation);
}

}  // namespace pyinv::torchscript
