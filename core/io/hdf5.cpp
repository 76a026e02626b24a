// SPDX-License-Identifier: Apache-2.0
#include "core/io/hdf5.h"

#include <hdf5.h>
#include <zlib.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>
#include <limits>

#include "core/io/file.h"
#include "core/io/hdf5_source.h"

namespace fovea {
namespace {

// Owns an identifier of any kind.
class Id {
 public:
  Id(hid_t id, herr_t (*close)(hid_t)) : id_(id), close_(close) {}
  ~Id() {
    if (id_ >= 0) close_(id_);
  }
  Id(const Id&) = delete;
  Id& operator=(const Id&) = delete;
  operator hid_t() const { return id_; }
  bool ok() const { return id_ >= 0; }

 private:
  hid_t id_;
  herr_t (*close_)(hid_t);
};

void be_silent() {
  static const bool once = H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr) >= 0;
  (void)once;
}

// The innermost reason that the library gives for its last failure.
std::string reason() {
  std::string text = "unknown reason";
  H5Ewalk2(
      H5E_DEFAULT, H5E_WALK_UPWARD,
      [](unsigned n, const H5E_error2_t* error, void* out) -> herr_t {
        if (n == 0 && error->desc != nullptr) *static_cast<std::string*>(out) = error->desc;
        return 0;
      },
      &text);
  return text;
}

hid_t memory_type(Dtype dtype) {
  switch (dtype) {
    case Dtype::f32:
      return H5T_NATIVE_FLOAT;
    case Dtype::f64:
      return H5T_NATIVE_DOUBLE;
    case Dtype::bf16:
      return H5T_NATIVE_UINT16;
    case Dtype::i64:
      return H5T_NATIVE_INT64;
    case Dtype::i32:
      return H5T_NATIVE_INT32;
    case Dtype::u8:
    case Dtype::boolean:
      return H5T_NATIVE_UINT8;
  }
  return -1;
}

constexpr size_t kLongestText = size_t{1} << 30;

std::optional<std::string> text_attribute(hid_t object, const std::string& name) {
  if (H5Aexists(object, name.c_str()) <= 0) return std::nullopt;
  const Id attribute(H5Aopen(object, name.c_str(), H5P_DEFAULT), H5Aclose);
  const Id type(attribute.ok() ? H5Aget_type(attribute) : -1, H5Tclose);
  if (!type.ok()) return std::nullopt;
  // One value: a list would not fit where it is read to.
  const Id space(H5Aget_space(attribute), H5Sclose);
  if (!space.ok() || H5Sget_simple_extent_npoints(space) != 1) return std::nullopt;
  if (H5Tget_class(type) == H5T_INTEGER) {
    long long value = 0;
    if (H5Aread(attribute, H5T_NATIVE_LLONG, &value) < 0) return std::nullopt;
    return std::to_string(value);
  }
  if (H5Tget_class(type) != H5T_STRING) return std::nullopt;
  if (H5Tis_variable_str(type) > 0) {
    const Id memory(H5Tcopy(H5T_C_S1), H5Tclose);
    H5Tset_size(memory, H5T_VARIABLE);
    H5Tset_cset(memory, H5Tget_cset(type));
    char* value = nullptr;
    if (H5Aread(attribute, memory, &value) < 0 || value == nullptr) return std::nullopt;
    const std::string text = value;
    H5free_memory(value);
    return text;
  }
  if (H5Tget_size(type) > kLongestText) return std::nullopt;
  std::string text(H5Tget_size(type), '\0');
  if (H5Aread(attribute, type, text.data()) < 0) return std::nullopt;
  return text.substr(0, std::min(text.find('\0'), text.size()));
}

Dtype stored_dtype(hid_t dataset, hid_t type, const std::string& where) {
  const size_t size = H5Tget_size(type);
  const H5T_class_t kind = H5Tget_class(type);
  if (kind == H5T_ENUM && size == 1) return Dtype::boolean;  // how h5py writes bool
  FOVEA_CHECK(kind == H5T_FLOAT || kind == H5T_INTEGER, where,
              ": holds values of a type that is neither float nor integer");
  if (const auto tag = text_attribute(dataset, "dtype")) {
    const Dtype dtype = parse_dtype(*tag);
    FOVEA_CHECK(dtype != Dtype::bf16 || (kind == H5T_INTEGER && size == 2), where,
                ": is marked as bf16, but holds no 16-bit integers");
    return dtype;
  }
  if (kind == H5T_FLOAT && size == 8) return Dtype::f64;
  if (kind == H5T_FLOAT && size <= 4) return Dtype::f32;
  if (kind == H5T_INTEGER && size == 1 && H5Tget_sign(type) == H5T_SGN_NONE) return Dtype::u8;
  if (kind == H5T_INTEGER && size <= 4 && !(size == 4 && H5Tget_sign(type) == H5T_SGN_NONE))
    return Dtype::i32;
  FOVEA_CHECK(kind == H5T_INTEGER, where, ": holds floats of ", size, " bytes; at most 8 are read");
  return Dtype::i64;
}

// How values stored as `type` come into memory; HDF5 turns no enum into an integer.
hid_t memory_type(hid_t type, Dtype dtype) {
  return H5Tget_class(type) == H5T_ENUM ? type : memory_type(dtype);
}

// What is in memory must be 0 or 1 before it is looked at as a bool.
void make_bools(const Tensor& tensor) {
  if (tensor.dtype() != Dtype::boolean) return;
  auto* bytes = static_cast<unsigned char*>(tensor.raw());
  for (int64_t i = 0; i < tensor.numel(); ++i) bytes[i] = bytes[i] != 0 ? 1 : 0;
}

// What save() appends, where HDF5 no longer looks: eight letters and the CRC-32 of everything
// before them, so that damage to headers is found as surely as damage to values.
constexpr std::string_view kSeal = "FOVEAEND";

uint32_t checksum(std::string_view bytes) {
  return static_cast<uint32_t>(
      crc32_z(0, reinterpret_cast<const Bytef*>(bytes.data()), bytes.size()));
}

// Whether the file ends in its checksum.
bool check_seal(const std::string& path, Seal seal) {
  const MappedFile file(path);
  const std::string_view all(reinterpret_cast<const char*>(file.bytes().data()),
                             file.bytes().size());
  if (all.size() < kSeal.size() + 4 ||
      all.substr(all.size() - kSeal.size() - 4, kSeal.size()) != kSeal) {
    FOVEA_CHECK(seal == Seal::optional, "hdf5 ", path,
                ": does not end in a checksum; it is cut short, or no checkpoint of this program");
    return false;
  }
  uint32_t expected = 0;
  std::memcpy(&expected, all.data() + all.size() - 4, 4);
  FOVEA_CHECK(checksum(all.substr(0, all.size() - kSeal.size() - 4)) == expected, "hdf5 ", path,
              ": its checksum does not match, the file is damaged");
  return true;
}

// ---- reader -------------------------------------------------------------------------------------

class Hdf5File final : public Hdf5Source {
 public:
  explicit Hdf5File(const std::string& path)
      : path_(path), file_(H5Fopen(path.c_str(), H5F_ACC_RDONLY, H5P_DEFAULT), H5Fclose) {
    FOVEA_CHECK(file_.ok(), "hdf5 ", path_,
                ": cannot be opened, it is cut short or damaged: ", reason());
  }
  bool has(const std::string& name) override;
  std::vector<std::string> members(const std::string& group) override;
  Shape shape(const std::string& name) override;
  Dtype dtype(const std::string& name) override;
  Tensor read(const std::string& name, std::optional<Rows> rows) override;
  std::optional<std::string> attribute(const std::string& object, const std::string& name) override;

 private:
  void check_claim(const Shape& shape, Dtype dtype, const std::string& name) const;
  std::string path_;
  Id file_;
};

bool Hdf5File::has(const std::string& name) {
  // H5Lexists wants every link of the path looked at in turn.
  for (size_t slash = name.find('/', 1); slash != std::string::npos;
       slash = name.find('/', slash + 1)) {
    if (H5Lexists(file_, name.substr(0, slash).c_str(), H5P_DEFAULT) <= 0) return false;
  }
  return name == "/" || H5Lexists(file_, name.c_str(), H5P_DEFAULT) > 0;
}

std::vector<std::string> Hdf5File::members(const std::string& group) {
  std::vector<std::string> names;
  const Id id(H5Gopen2(file_, group.c_str(), H5P_DEFAULT), H5Gclose);
  FOVEA_CHECK(id.ok(), "hdf5 ", path_, ": has no group ", group);
  const herr_t status = H5Literate(
      id, H5_INDEX_NAME, H5_ITER_INC, nullptr,
      [](hid_t, const char* name, const H5L_info_t*, void* out) -> herr_t {
        static_cast<std::vector<std::string>*>(out)->emplace_back(name);
        return 0;
      },
      &names);
  FOVEA_CHECK(status >= 0, "hdf5 ", path_, ": group ", group, " cannot be listed: ", reason());
  return names;
}

Shape Hdf5File::shape(const std::string& name) {
  const Id dataset(has(name) ? H5Dopen2(file_, name.c_str(), H5P_DEFAULT) : -1, H5Dclose);
  FOVEA_CHECK(dataset.ok(), "hdf5 ", path_, ": has no dataset ", name);
  const Id space(H5Dget_space(dataset), H5Sclose);
  FOVEA_CHECK(space.ok() && H5Sget_simple_extent_type(space) != H5S_NULL, "hdf5 ", path_,
              ": dataset ", name, " holds no values");
  const int rank = H5Sget_simple_extent_ndims(space);
  FOVEA_CHECK(rank >= 0 && rank <= Shape::kMaxRank, "hdf5 ", path_, ": dataset ", name,
              " has rank ", rank, "; at most ", Shape::kMaxRank, " is supported");
  std::array<hsize_t, Shape::kMaxRank> sizes{};
  H5Sget_simple_extent_dims(space, sizes.data(), nullptr);
  Shape shape;
  for (int axis = 0; axis < rank; ++axis) {
    const hsize_t size = sizes[static_cast<size_t>(axis)];
    FOVEA_CHECK(size <= static_cast<hsize_t>(std::numeric_limits<int64_t>::max()), "hdf5 ", path_,
                ": dataset ", name, " has size ", size, " on axis ", axis);
    shape.push_back(static_cast<int64_t>(size));
  }
  if (const auto scalar = text_attribute(dataset, "shape");
      scalar && *scalar == "[]" && shape == Shape{1})
    return Shape{};
  return shape;
}

// HDF5 never reads past the end of a file, but fills what a damaged header claims beyond it: no
// room is made for more than its best compression (1032 to 1) could have packed.
void Hdf5File::check_claim(const Shape& shape, Dtype dtype, const std::string& name) const {
  const auto most = 1032.0 * static_cast<double>(std::filesystem::file_size(path_));
  double bytes = static_cast<double>(size_of(dtype));
  for (const int64_t size : shape) bytes *= static_cast<double>(size);
  FOVEA_CHECK(bytes <= most, "hdf5 ", path_, ": dataset ", name, ' ', dtype, ' ', shape,
              " is more than the whole file can hold; it is damaged");
}

Dtype Hdf5File::dtype(const std::string& name) {
  const Id dataset(has(name) ? H5Dopen2(file_, name.c_str(), H5P_DEFAULT) : -1, H5Dclose);
  FOVEA_CHECK(dataset.ok(), "hdf5 ", path_, ": has no dataset ", name);
  const Id type(H5Dget_type(dataset), H5Tclose);
  return stored_dtype(dataset, type, concat("hdf5 ", path_, ": ", name));
}

Tensor Hdf5File::read(const std::string& name, std::optional<Rows> rows) {
  Shape part = shape(name);
  if (rows) {
    FOVEA_CHECK(
        part.rank() >= 1 && rows->begin >= 0 && rows->begin <= rows->end && rows->end <= part[0],
        "hdf5 ", path_, ": rows ", rows->begin, " to ", rows->end, " of ", name, ' ', part);
    part[0] = rows->end - rows->begin;
  }
  const Id dataset(H5Dopen2(file_, name.c_str(), H5P_DEFAULT), H5Dclose);
  const Id type(H5Dget_type(dataset), H5Tclose);
  const Dtype dtype = stored_dtype(dataset, type, concat("hdf5 ", path_, ": ", name));
  check_claim(part, dtype, name);
  const Tensor out = Tensor::empty(part, dtype);
  std::array<hsize_t, Shape::kMaxRank> start{}, count{};
  if (rows) start[0] = static_cast<hsize_t>(rows->begin);
  for (int axis = 0; axis < part.rank(); ++axis)
    count[static_cast<size_t>(axis)] = static_cast<hsize_t>(part[axis]);
  // A scalar is stored as one value of rank 1, or as a space of rank 0: either is read whole.
  const Id from(H5Dget_space(dataset), H5Sclose),
      to(H5Screate_simple(part.rank(), count.data(), nullptr), H5Sclose);
  const hid_t part_of_file = rows ? hid_t{from} : H5S_ALL, all = rows ? hid_t{to} : H5S_ALL;
  const bool good =
      out.numel() == 0 ||
      ((!rows || H5Sselect_hyperslab(from, H5S_SELECT_SET, start.data(), nullptr, count.data(),
                                     nullptr) >= 0) &&
       H5Dread(dataset, memory_type(type, dtype), all, part_of_file, H5P_DEFAULT, out.raw()) >= 0);
  FOVEA_CHECK(good, "hdf5 ", path_, ": ",
              rows ? concat("rows ", rows->begin, " to ", rows->end, " of ") : "dataset ", name,
              " cannot be read, the file is damaged: ", reason());
  make_bools(out);
  return out;
}

std::optional<std::string> Hdf5File::attribute(const std::string& object, const std::string& name) {
  const Id id(H5Oopen(file_, object.c_str(), H5P_DEFAULT), H5Oclose);
  FOVEA_CHECK(id.ok(), "hdf5 ", path_, ": has no object ", object);
  return text_attribute(id, name);
}

}  // namespace

std::unique_ptr<Hdf5Source> open_hdf5(const std::string& path) {
  be_silent();
  return std::make_unique<Hdf5File>(path);
}

Hdf5Reader::Hdf5Reader(const std::filesystem::path& path, Seal seal) : path_(path.string()) {
  be_silent();
  FOVEA_CHECK(std::filesystem::is_regular_file(path), "hdf5 ", path_, ": no such file");
  FOVEA_CHECK(H5Fis_hdf5(path_.c_str()) > 0, "hdf5 ", path_,
              ": is no HDF5 file (or its head is damaged)");
  source_ = check_seal(path_, seal) ? open_hdf5(path_) : open_hdf5_apart(path_);
}

Hdf5Reader::~Hdf5Reader() = default;

bool Hdf5Reader::has(const std::string& name) const { return source_->has(name); }

std::vector<std::string> Hdf5Reader::members(const std::string& group) const {
  return source_->members(group);
}

Shape Hdf5Reader::shape(const std::string& name) const { return source_->shape(name); }

Dtype Hdf5Reader::dtype(const std::string& name) const { return source_->dtype(name); }

Tensor Hdf5Reader::read(const std::string& name) const { return source_->read(name, std::nullopt); }

Tensor Hdf5Reader::read_rows(const std::string& name, int64_t begin, int64_t end) const {
  return source_->read(name, Hdf5Source::Rows{begin, end});
}

std::optional<std::string> Hdf5Reader::attribute(const std::string& object,
                                                 const std::string& name) const {
  return source_->attribute(object, name);
}

// ---- writer -------------------------------------------------------------------------------------

Hdf5Writer::Hdf5Writer() {
  be_silent();
  const Id access(H5Pcreate(H5P_FILE_ACCESS), H5Pclose);
  H5Pset_fapl_core(access, size_t{16} << 20, false);
  // HDF5 knows open files by name, those in memory too.
  static std::atomic<int64_t> count{0};
  file_ = H5Fcreate(concat("in memory ", ++count).c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, access);
  FOVEA_CHECK(file_ >= 0, "hdf5: cannot make a file in memory: ", reason());
}

Hdf5Writer::~Hdf5Writer() {
  if (file_ >= 0) H5Fclose(file_);
}

void Hdf5Writer::write(const std::string& name, const Tensor& tensor) {
  const Tensor values = tensor.to(kCpu).contiguous();
  std::vector<hsize_t> sizes, chunk;
  for (const int64_t size : values.shape()) sizes.push_back(static_cast<hsize_t>(size));
  const bool scalar = sizes.empty();
  if (scalar) sizes.push_back(1);
  // Whole rows, about a mebibyte of them.
  const int64_t rows = static_cast<int64_t>(sizes[0]),
                row_bytes = std::max<int64_t>(1, values.bytes() / std::max<int64_t>(1, rows));
  chunk = sizes;
  chunk[0] = static_cast<hsize_t>(
      std::clamp<int64_t>((int64_t{1} << 20) / row_bytes, 1, std::max<int64_t>(1, rows)));
  const Id links(H5Pcreate(H5P_LINK_CREATE), H5Pclose),
      layout(H5Pcreate(H5P_DATASET_CREATE), H5Pclose);
  H5Pset_create_intermediate_group(links, 1);
  if (values.numel() > 0) {
    H5Pset_chunk(layout, static_cast<int>(chunk.size()), chunk.data());
    H5Pset_fletcher32(layout);
  }
  const Id space(H5Screate_simple(static_cast<int>(sizes.size()), sizes.data(), nullptr), H5Sclose);
  const hid_t type = memory_type(values.dtype());
  const Id dataset(H5Dcreate2(file_, name.c_str(), type, space, links, layout, H5P_DEFAULT),
                   H5Dclose);
  FOVEA_CHECK(dataset.ok(), "hdf5: cannot make dataset ", name, ": ", reason());
  FOVEA_CHECK(values.numel() == 0 ||
                  H5Dwrite(dataset, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, values.raw()) >= 0,
              "hdf5: cannot write dataset ", name, ": ", reason());
  attribute(name, "dtype", std::string(fovea::name(values.dtype())));
  attribute(name, "shape", concat(values.shape()));
}

void Hdf5Writer::attribute(const std::string& object, const std::string& name,
                           const std::string& value) {
  const Id id(H5Oopen(file_, object.c_str(), H5P_DEFAULT), H5Oclose),
      type(H5Tcopy(H5T_C_S1), H5Tclose), space(H5Screate(H5S_SCALAR), H5Sclose);
  H5Tset_size(type, value.size() + 1);
  H5Tset_cset(type, H5T_CSET_UTF8);
  const Id attribute(
      id.ok() ? H5Acreate2(id, name.c_str(), type, space, H5P_DEFAULT, H5P_DEFAULT) : -1, H5Aclose);
  FOVEA_CHECK(attribute.ok() && H5Awrite(attribute, type, value.c_str()) >= 0,
              "hdf5: cannot write attribute ", name, " of ", object, ": ", reason());
}

void Hdf5Writer::save(const std::filesystem::path& path) {
  H5Fflush(file_, H5F_SCOPE_GLOBAL);
  const ssize_t size = H5Fget_file_image(file_, nullptr, 0);
  FOVEA_CHECK(size > 0, "hdf5 ", path.string(), ": cannot take the image: ", reason());
  std::string image(static_cast<size_t>(size), '\0');
  FOVEA_CHECK(H5Fget_file_image(file_, image.data(), image.size()) == size, "hdf5 ", path.string(),
              ": cannot take the image: ", reason());
  const uint32_t sum = checksum(image);
  image.append(kSeal).append(reinterpret_cast<const char*>(&sum), 4);
  replace_file(path, image);
}

}  // namespace fovea
