package engines

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// originalSuffix is what Link appends to the name of a worker that it replaces.
const originalSuffix = ".original"

// Link makes an installed npm package @agoric/xsnap start the launcher in place of the workers that it came with, which are kept beside it.
// dir is the package's folder, or one that has it in node_modules. It returns the links. Linking again changes nothing, or the launcher.
func Link(dir, launcher string) ([]string, error) {
	launcher, err := filepath.Abs(launcher)
	if err != nil {
		return nil, err
	}
	if info, err := os.Stat(launcher); err != nil {
		return nil, fmt.Errorf("linking to the launcher: %w", err)
	} else if !info.Mode().IsRegular() || info.Mode()&0o111 == 0 {
		return nil, fmt.Errorf("linking to the launcher: %s is not a program", launcher)
	}
	pkg, err := xsnapPackage(dir)
	if err != nil {
		return nil, err
	}
	var links []string
	for _, name := range workerNames(pkg) {
		if err := link(name, launcher); err != nil {
			return links, fmt.Errorf("linking %s to the launcher: %w", name, err)
		}
		links = append(links, name)
	}
	return links, nil
}

func link(name, launcher string) error {
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	info, err := os.Lstat(name)
	if err == nil && info.Mode().IsRegular() {
		// A hard link first: at every moment there is something under the name, and the original is somewhere.
		if err := os.Link(name, name+originalSuffix); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	aside := name + ".new"
	return errors.Join(os.RemoveAll(aside), os.Symlink(launcher, aside), os.Rename(aside, name))
}

// Unlink undoes Link: the workers that the package came with are back, and where it came with none there is none. It returns their names.
func Unlink(dir string) ([]string, error) {
	pkg, err := xsnapPackage(dir)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, name := range workerNames(pkg) {
		info, err := os.Lstat(name)
		if err != nil || info.Mode()&fs.ModeSymlink == 0 {
			continue // not linked
		}
		err = os.Rename(name+originalSuffix, name)
		if errors.Is(err, fs.ErrNotExist) {
			err = os.Remove(name)
		}
		if err != nil {
			return names, fmt.Errorf("unlinking the launcher: %w", err)
		}
		names = append(names, name)
	}
	return names, nil
}

// workerNames returns where @agoric/xsnap looks for its workers (src/xsnap.js).
func workerNames(pkg string) []string {
	build := filepath.Join(pkg, "xsnap-native", "xsnap", "build", "bin", "lin")
	return []string{filepath.Join(build, "release", WorkerName), filepath.Join(build, "debug", WorkerName)}
}

func xsnapPackage(dir string) (string, error) {
	for _, pkg := range []string{dir, filepath.Join(dir, "node_modules", "@agoric", "xsnap")} {
		var m struct {
			Name string `json:"name"`
		}
		data, err := os.ReadFile(filepath.Join(pkg, "package.json"))
		if err == nil && json.Unmarshal(data, &m) == nil && m.Name == "@agoric/xsnap" {
			return filepath.EvalSymlinks(pkg)
		}
	}
	return "", fmt.Errorf("%s is neither the npm package @agoric/xsnap nor a folder with it in node_modules", dir)
}
