// SPDX-License-Identifier: Apache-2.0
#include "data/image/decode.h"

#include <jpeglib.h>
#include <png.h>

#include <csetjmp>
#include <cstdio>
#include <cstring>

#include "core/error.h"
#include "core/io/file.h"

namespace fovea::data {
namespace {

constexpr int64_t kLargest = int64_t{1} << 28;  // pixels

void check_size(const std::string& file, int64_t height, int64_t width) {
  FOVEA_CHECK(height >= 1 && width >= 1 && height * width <= kLargest, "image ", file, ": ", height,
              " x ", width, " pixels are too many");
}

Rgb decode_png(const std::string& bytes, const std::string& file) {
  struct Png {
    png_image image{};
    ~Png() { png_image_free(&image); }
  } png;
  png.image.version = PNG_IMAGE_VERSION;
  const auto check = [&](int ok) { FOVEA_CHECK(ok != 0, "image ", file, ": ", png.image.message); };
  check(png_image_begin_read_from_memory(&png.image, bytes.data(), bytes.size()));
  Rgb rgb{png.image.height, png.image.width, {}};
  check_size(file, rgb.height, rgb.width);
  png.image.format = PNG_FORMAT_RGB;
  rgb.values.resize(static_cast<size_t>(rgb.height * rgb.width * 3));
  const png_color black{0, 0, 0};
  check(png_image_finish_read(&png.image, &black, rgb.values.data(), 0, nullptr));
  return rgb;
}

// libjpeg reports through callbacks; a fatal error must not return to it.
struct JpegErrors {
  jpeg_error_mgr manager;
  std::jmp_buf escape;
  char message[JMSG_LENGTH_MAX];
};

void jpeg_fatal(j_common_ptr codec) {
  auto* errors = reinterpret_cast<JpegErrors*>(codec->err);
  codec->err->format_message(codec, errors->message);
  std::longjmp(errors->escape, 1);
}

// The header, then the lines; false with a message in `errors`. Nothing with a destructor lives
// across the jump.
bool jpeg_header(jpeg_decompress_struct& codec, JpegErrors& errors, const std::string& bytes) {
  if (setjmp(errors.escape) != 0) return false;
  jpeg_mem_src(&codec, reinterpret_cast<const unsigned char*>(bytes.data()), bytes.size());
  jpeg_read_header(&codec, TRUE);
  codec.out_color_space = JCS_RGB;
  return true;
}

bool jpeg_lines(jpeg_decompress_struct& codec, JpegErrors& errors, uint8_t* out) {
  if (setjmp(errors.escape) != 0) return false;
  jpeg_start_decompress(&codec);
  while (codec.output_scanline < codec.output_height) {
    JSAMPROW row = out + static_cast<size_t>(codec.output_scanline) * codec.output_width * 3;
    jpeg_read_scanlines(&codec, &row, 1);
  }
  jpeg_finish_decompress(&codec);
  return true;
}

Rgb decode_jpeg(const std::string& bytes, const std::string& file) {
  JpegErrors errors{};
  struct Codec {
    jpeg_decompress_struct c{};
    ~Codec() { jpeg_destroy_decompress(&c); }
  } codec;
  codec.c.err = jpeg_std_error(&errors.manager);
  errors.manager.error_exit = jpeg_fatal;
  errors.manager.output_message = [](j_common_ptr) {};
  jpeg_create_decompress(&codec.c);
  FOVEA_CHECK(jpeg_header(codec.c, errors, bytes), "image ", file, ": ", errors.message);
  Rgb rgb{
      codec.c.image_height, codec.c.image_width, {}};  // before libjpeg makes room for all of it
  check_size(file, rgb.height, rgb.width);
  rgb.values.resize(static_cast<size_t>(rgb.height * rgb.width * 3));
  FOVEA_CHECK(jpeg_lines(codec.c, errors, rgb.values.data()), "image ", file, ": ", errors.message);
  // libjpeg fills what is missing with grey and only warns.
  FOVEA_CHECK(errors.manager.num_warnings == 0, "image ", file,
              ": the JPEG data are damaged or cut short");
  return rgb;
}

}  // namespace

Rgb decode_image(const std::filesystem::path& path) {
  const std::string bytes = read_file(path), file = path.string();
  if (bytes.starts_with("\x89PNG")) return decode_png(bytes, file);
  if (bytes.starts_with("\xff\xd8\xff")) return decode_jpeg(bytes, file);
  throw Error(concat("image ", file, ": is neither PNG nor JPEG"));
}

}  // namespace fovea::data
