package engines

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// File is a file of an engine.
type File struct {
	Path   string `json:"-"`
	SHA256 string `json:"sha256"` // 64 hexadecimal digits
	Size   int64  `json:"size"`   // bytes
}

// DamagedError says that a file is not what was installed.
type DamagedError struct {
	Path        string
	Want, Found string // SHA-256, in hexadecimal, and what else there is to say
}

func (e *DamagedError) Error() string {
	return fmt.Sprintf("%s is damaged: expected sha256 %s, found %s; fetch the version again: enginery fetch", e.Path, e.Want, e.Found)
}

// Open returns the file's content, verified: an anonymous file in memory that nobody can change any more (memfd_create(2), sealed), so
// that what is read, or executed, is what was hashed. It is a *DamagedError if the file is not what was installed.
func (f File) Open() (*os.File, error) {
	in, err := os.Open(f.Path)
	if err != nil {
		return nil, err
	}
	defer in.Close()
	m, err := memfd(f.Path)
	if err != nil {
		return nil, err
	}
	if err := f.copy(m, in); err != nil {
		m.Close()
		return nil, err
	}
	// Sealed first and hashed then, so that there is no moment between the two.
	if _, err := unix.FcntlInt(m.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_WRITE|unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_SEAL); err != nil {
		m.Close()
		return nil, fmt.Errorf("sealing a copy of %s: %w", f.Path, err)
	}
	info, err := m.Stat()
	if err != nil {
		m.Close()
		return nil, err
	}
	if !f.verified(m, info.Size()) {
		if err := f.check(io.NewSectionReader(m, 0, f.Size+1)); err != nil {
			m.Close()
			return nil, err
		}
	}
	if _, err := m.Seek(0, io.SeekStart); err != nil {
		m.Close()
		return nil, err
	}
	return m, nil
}

// copy copies the file's bytes, and at most one more.
func (f File) copy(to, from *os.File) error {
	for left := f.Size + 1; left > 0; {
		n, err := unix.Sendfile(int(to.Fd()), int(from.Fd()), nil, int(min(left, 1<<30)))
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return fmt.Errorf("copying %s: %w", f.Path, err)
		}
		if n == 0 {
			break
		}
		left -= int64(n)
	}
	return nil
}

func (f File) check(r io.Reader) error {
	h := sha256.New()
	n, err := io.CopyBuffer(struct{ io.Writer }{h}, r, make([]byte, 128<<10))
	if err != nil {
		return fmt.Errorf("reading %s: %w", f.Path, err)
	}
	if n != f.Size {
		found := fmt.Sprintf("%d bytes instead of %d", n, f.Size)
		if n > f.Size {
			found = fmt.Sprintf("more than %d bytes", f.Size)
		}
		return &DamagedError{f.Path, f.SHA256, found}
	}
	if found := hex.EncodeToString(h.Sum(nil)); found != f.SHA256 {
		return &DamagedError{f.Path, f.SHA256, found}
	}
	return nil
}

// Verify reads the file and returns a *DamagedError if it is not what was installed.
func (f File) Verify() error {
	in, err := os.Open(f.Path)
	if err != nil {
		return err
	}
	defer in.Close()
	return f.check(io.LimitReader(in, f.Size+1))
}

// Read returns the file's content, verified.
func (f File) Read() ([]byte, error) {
	in, err := os.Open(f.Path)
	if err != nil {
		return nil, err
	}
	defer in.Close()
	content := make([]byte, 0, f.Size)
	w := writer(func(p []byte) { content = append(content, p...) })
	if err := f.check(io.TeeReader(io.LimitReader(in, f.Size+1), w)); err != nil {
		return nil, err
	}
	return content, nil
}

type writer func([]byte)

func (w writer) Write(p []byte) (int, error) {
	w(p)
	return len(p), nil
}

// memfd makes an anonymous file that can be executed.
func memfd(name string) (*os.File, error) {
	fd, err := unix.MemfdCreate("enginery", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING|unix.MFD_EXEC)
	if errors.Is(err, unix.EINVAL) { // before Linux 6.3
		fd, err = unix.MemfdCreate("enginery", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	}
	if errors.Is(err, unix.EACCES) {
		return nil, fmt.Errorf("making a sealed copy of %s: %w: this kernel forbids executing files in memory; set the sysctl vm.memfd_noexec to 0 or 1", name, err)
	} else if err != nil {
		return nil, fmt.Errorf("making a sealed copy of %s: memfd_create: %w", name, err)
	}
	return os.NewFile(uintptr(fd), name), nil
}
