// SPDX-License-Identifier: Apache-2.0
#include "data/gzip.h"

#include <zlib.h>

#include <limits>

#include "core/error.h"
#include "core/io/file.h"

namespace fovea::data {

std::string read_maybe_gzip(const std::filesystem::path& path, size_t most) {
  std::string packed = read_file(path);
  if (packed.size() < 2 || packed[0] != '\x1f' || packed[1] != '\x8b') return packed;
  z_stream stream{};
  FOVEA_CHECK(inflateInit2(&stream, 15 + 16) == Z_OK, "gzip ", path.string(),
              ": zlib could not start");
  struct End {
    z_stream* stream;
    ~End() { inflateEnd(stream); }
  } const end{&stream};
  std::string content;
  stream.next_in = reinterpret_cast<Bytef*>(packed.data());
  FOVEA_CHECK(packed.size() <= std::numeric_limits<uInt>::max(), "gzip ", path.string(), ": ",
              packed.size(), " bytes are more than zlib takes at once; unpack it");
  stream.avail_in = static_cast<uInt>(packed.size());
  std::string piece(1 << 20, '\0');
  int status = Z_OK;
  while (true) {
    if (status == Z_STREAM_END) {  // a file may hold several members, one after another
      if (stream.avail_in == 0) return content;
      inflateReset(&stream);
    }
    stream.next_out = reinterpret_cast<Bytef*>(piece.data());
    stream.avail_out = static_cast<uInt>(piece.size());
    status = inflate(&stream, Z_NO_FLUSH);
    FOVEA_CHECK(status == Z_OK || status == Z_STREAM_END, "gzip ", path.string(), ": ",
                status == Z_BUF_ERROR   ? "the file is cut short"
                : stream.msg != nullptr ? stream.msg
                                        : "damaged");
    FOVEA_CHECK(content.size() + piece.size() - stream.avail_out <= most, "gzip ", path.string(),
                ": unpacks to more than ", most, " bytes; unpack it yourself if that is right");
    content.append(piece, 0, piece.size() - stream.avail_out);
  }
}

}  // namespace fovea::data
