package reproduce

import (
	"cmp"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Environment is what a build could have seen of its surroundings, had it not been hermetic.
type Environment struct {
	Path       string `json:"path"` // of the store
	FileSystem string `json:"fileSystem"`
	FileOrder  string `json:"fileOrder"` // in which a directory there lists files made as a, b, c, …
	User       int    `json:"user"`
	Umask      string `json:"umask"`
	Host       string `json:"host"`
	Network    string `json:"network"`
	Locale     string `json:"locale"`
	TimeZone   string `json:"timeZone"`
	Home       string `json:"home"`
	Jobs       int    `json:"jobs"`
	Variables  string `json:"variables"` // that make and compilers heed
	Kernel     string `json:"kernel"`    // the same for both, if both run on one machine
}

// heeded are environment variables that make, gcc and ld heed, with what the second build has in them. With any of these in force there
// would be another result, or none.
var heeded = map[string]string{
	"CC":                "false",
	"CFLAGS":            "-O1 -funsigned-char",
	"COMPILER_PATH":     "/nonexistent",
	"CPATH":             "/nonexistent",
	"CPPFLAGS":          "-DNDEBUG",
	"C_INCLUDE_PATH":    "/nonexistent",
	"GCC_EXEC_PREFIX":   "/nonexistent/",
	"LDFLAGS":           "-s",
	"LIBRARY_PATH":      "/nonexistent",
	"LINK_OPTIONS":      "-dynamic",
	"MAKEFILES":         "/nonexistent",
	"MAKEFLAGS":         "-k -n",
	"SOURCE_DATE_EPOCH": "1234567890",
	"XSNAP_VERSION":     "elsewhere",
}

func observe(store string, jobs int) Environment {
	umask := syscall.Umask(0)
	syscall.Umask(umask)
	e := Environment{
		Path:       store,
		FileSystem: fileSystem(store),
		FileOrder:  fileOrder(filepath.Join(store, "tmp")),
		User:       os.Geteuid(),
		Umask:      fmt.Sprintf("%03o", umask),
		Network:    network(),
		Locale:     cmp.Or(os.Getenv("LC_ALL"), os.Getenv("LANG"), "C"),
		TimeZone:   cmp.Or(os.Getenv("TZ"), "the system's"),
		Home:       os.Getenv("HOME"),
		Jobs:       jobs,
		Variables:  variables(),
	}
	var uts unix.Utsname
	if unix.Uname(&uts) == nil {
		e.Host = unix.ByteSliceToString(uts.Nodename[:])
		e.Kernel = unix.ByteSliceToString(uts.Release[:])
	}
	return e
}

func variables() string {
	var set []string
	for _, name := range slices.Sorted(maps.Keys(heeded)) {
		if value, ok := os.LookupEnv(name); ok {
			set = append(set, name+"="+value)
		}
	}
	return cmp.Or(strings.Join(set, " "), "none")
}

func network() string {
	interfaces, err := net.Interfaces()
	if err != nil {
		return "unknown"
	}
	var up []string
	for _, i := range interfaces {
		if i.Flags&net.FlagUp != 0 {
			up = append(up, i.Name)
		}
	}
	return cmp.Or(strings.Join(up, " "), "none")
}

func fileSystem(dir string) string {
	var sys unix.Statfs_t
	if unix.Statfs(dir, &sys) != nil {
		return "unknown"
	}
	names := map[int64]string{
		unix.BTRFS_SUPER_MAGIC:     "btrfs",
		unix.EXT4_SUPER_MAGIC:      "ext4",
		unix.F2FS_SUPER_MAGIC:      "f2fs",
		unix.NFS_SUPER_MAGIC:       "nfs",
		unix.OVERLAYFS_SUPER_MAGIC: "overlayfs",
		unix.TMPFS_MAGIC:           "tmpfs",
		unix.XFS_SUPER_MAGIC:       "xfs",
	}
	if name, ok := names[int64(sys.Type)]; ok {
		return name
	}
	return fmt.Sprintf("type %#x", sys.Type)
}

// fileOrder makes a few files in a new directory below parent and returns their names as the directory lists them.
func fileOrder(parent string) string {
	dir, err := os.MkdirTemp(parent, "order-")
	if err != nil {
		return "unknown"
	}
	defer os.RemoveAll(dir)
	for name := 'a'; name <= 'h'; name++ {
		if err := os.WriteFile(filepath.Join(dir, string(name)), nil, 0o600); err != nil {
			return "unknown"
		}
	}
	d, err := os.Open(dir)
	if err != nil {
		return "unknown"
	}
	defer d.Close()
	names, err := d.Readdirnames(-1) // unlike os.ReadDir it does not sort
	if err != nil {
		return "unknown"
	}
	return strings.Join(names, " ")
}
